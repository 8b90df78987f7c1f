"""Tables of runs: rows that cannot be fitted are refused or set aside by name."""

import csv
import hashlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from solo.config import ConfigError
from solo.scaling.laws.table import Columns, count, load_table
from solo.scaling.laws.table_file import read_rows, where
from tests.scaling.samples import OVERTRAIN

GADRE = Columns(n="N", d="D", losses=("loss_c4_val",))


def row(place: int, **changes) -> dict:
    found = {
        "id": f"run{place}",
        "status": "done",
        "n_active": 1e8 * (1 + place),
        "n_total": 3e8 * (1 + place),
        "tokens": 2e9,
        "flops": 1.3e18 * (1 + place),
        "losses": {"text": 3.0 - 0.01 * place, "caption": 2.0},
        "stable_run": None,
        "tokenizer": "t1",
        "evaluation_set": "e1",
    }
    return {**found, **changes}


def folder(path, rows) -> str:
    path.mkdir(exist_ok=True)
    (path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return str(path)


# ---------------------------------------------------------------------------------------- reading


def test_a_foreign_table() -> None:
    table = load_table(OVERTRAIN, GADRE, ["ds=rpj"])
    runs, aside = table.runs("loss_c4_val")
    assert (table.read, len(runs), aside) == (104, 35, ())
    assert table.sha256 == hashlib.sha256(OVERTRAIN.read_bytes()).hexdigest()
    largest = runs[runs.flops == runs.flops.max()]
    assert largest.id == ("rpj-open_lm_1b-32.0",)  # by its name, because there is no id
    assert runs.flops_factor == 6.0  # compute is not measured
    assert runs.clusters == 35


def test_the_folder_of_a_sweep(tmp_path) -> None:
    path = folder(tmp_path / "sweep", [row(0), row(1, stable_run="run0"), row(2, unique_tokens=1e9)])
    table = load_table(path, Columns())
    assert table.columns.losses == ("losses.text", "losses.caption")
    runs, _ = table.runs("losses.caption")
    assert list(runs.loss) == [2.0, 2.0, 2.0]
    assert list(runs.n) == [1e8, 2e8, 3e8]  # active, not total
    assert runs.flops_factor == pytest.approx(6.5)
    assert runs.cluster == ("run0", "run0", "run2")
    assert list(runs.unique) == [np.inf, np.inf, 1e9]
    assert load_table(path, Columns(losses=("text",))).columns.losses == ("losses.text",)


def test_the_same_table_in_every_format(tmp_path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    with OVERTRAIN.open() as file:
        rows = [{name: _typed(value) for name, value in line.items()} for line in csv.DictReader(file)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "runs.parquet")
    expected = load_table(OVERTRAIN, GADRE, ["ds=rpj"]).runs("loss_c4_val")[0]
    for name in ("runs.jsonl", "runs.parquet"):
        runs = load_table(tmp_path / name, GADRE, ["ds=rpj"]).runs("loss_c4_val")[0]
        assert runs.id == expected.id
        assert (runs.loss == expected.loss).all()


def _typed(value: str):
    try:
        return float(value)
    except ValueError:
        return value


def test_parquet_without_pyarrow(tmp_path, monkeypatch) -> None:
    (tmp_path / "runs.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        read_rows(tmp_path / "runs.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "cannot read results .*missing.csv: No such file"),
        ("runs.xlsx", "x", "expected one of .csv, .jsonl, .parquet"),
        ("runs.csv", "id,n,d\n", "has no rows"),
        ("runs.csv", 'id,n\n"a\nb",1\n"c\nd",2,3\n', "line 4: the number of cells .* 3 instead of 2"),
        ("runs.csv", 'id,n\na,1\n"b,2\nc,3\n', "line 3: not CSV: unexpected end of data"),
        ("runs.csv", "id,n\na\u2028b,1\nc\n", "line 3: the number of cells .* 1 instead of 2"),
        ("runs.csv", "id,n\na,1\n".encode("utf-16-le"), "line 1: contains NUL; if the table is UTF-16"),
        ("runs.csv", "id,n\n".encode("utf-16")[:-1], "line 1: not UTF-16"),
        ("runs.csv", "id,n\na,1\nb,2,3\nc,4\n", "line 3: the number of cells .* 3 instead of 2"),
        ("runs.csv", "id,n, n\na,1,2\n", "several columns are named 'n'"),
        ("runs.csv", "id,n\na,1\n\xe9,2\n".encode("latin-1"), "line 3: not UTF-8"),
        ("runs.csv", "id,n\na," + "1" * 200_000, "line 2: not CSV: field larger than field limit"),
        ("runs.jsonl", "\xe9".encode("latin-1"), "line 1: not UTF-8"),
        ("runs.jsonl", '{"id": 1}\n{"id":\n', "line 2: not JSON"),
        ("runs.jsonl", "[1]\n", "line 1: expected an object, found list"),
        ("runs.jsonl", '\n{"n": 1, "d": 2, "n": 3}\n', "line 2: several columns are named 'n'"),
        (
            "runs.jsonl",
            '{"losses": {"text": 1}, "losses.text": 2}\n',
            "several columns are named 'losses.text'",
        ),
        ("runs.jsonl", '{"n": ' + "1" * 5000 + "}", "runs.jsonl, line 1: Exceeds the limit"),
        ("runs.jsonl", "[" * 100_000, "runs.jsonl, line 1: maximum recursion depth"),
        ("runs.parquet", b"PAR1 cut short", "runs.parquet: cannot read it as parquet"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.csv", "\ufeffid,n\na,1\n\nb,2\n"),
        ("runs.csv", "id\tn\r\na\t1\r\nb\t2\r\n".encode("utf-16")),
        ("runs.csv", "id ; n\r\na;1\r\nb;2\r\n"),
        ("runs.csv", "id\tn\na\t1\nb\t2"),
        ("runs.jsonl", '\ufeff{"id": "a", "n": "1"}\n{"id": "b", "n": "2"}'),
    ],
)
def test_what_spreadsheets_write(tmp_path, name, content) -> None:
    """A byte order mark, UTF-16, other separators, spaces in the header, blank lines."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_rows(tmp_path / name)[0] == [{"id": "a", "n": "1"}, {"id": "b", "n": "2"}]


def test_a_line_of_json_may_contain_a_line_separator(tmp_path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"id": "a\u2028b"}\n')
    assert read_rows(tmp_path / "runs.jsonl")[0] == [{"id": "a\u2028b"}]


def test_ids_with_one_letter_e_are_not_numbers() -> None:
    rows = [{"id": "8e8062709994"}, {"id": "9e8062709994"}, {"id": "80627e"}]
    assert where(rows, ["id=8e8062709994"]) == rows[:1]
    assert where(rows, ["id!=8e8062709994"]) == rows[1:]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (["ds=rpj"], 35),
        (["ds!=rpj"], 69),
        (["ds=rpj", "cc<=1"], 14),
        (["ds=rpj", "cc=1"], 6),
        (["ds=rpj", "cc=1.0"], 6),
        (["N > 1e9", "ds=rpj"], 3),
    ],
)
def test_where(conditions, kept) -> None:
    rows, _ = read_rows(OVERTRAIN)
    assert len(where(rows, conditions)) == kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [("ds", "expected COLUMN=VALUE"), ("dataset=rpj", "no column 'dataset'"), ("cc<many", "'many' is not a number")],
)
def test_invalid_conditions(condition, message) -> None:
    rows, _ = read_rows(OVERTRAIN)
    with pytest.raises(ConfigError, match=message):
        where(rows, [condition])


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns(n="N", d="D", losses=("loss_c4",)),
            r"no column 'loss_c4'; did you mean 'loss_c4_val'\?; name it with",
        ),
        (Columns(d="D", losses=("loss_c4_val",)), "no column 'n_active'.*name it with --n"),
        (Columns(n="N", losses=("loss_c4_val",)), "no column 'tokens'.*name it with --d"),
        (Columns(n="N", d="D"), "name a column of losses with --loss"),
        (Columns(n="N", d="D", losses=("loss_c4_val",), stable_run="parent"), "no column 'parent'.*--stable-run"),
        (Columns(n="N", d="D", losses=("loss_c4_val",), by="mixture"), "no column 'mixture'.*--by"),
    ],
)
def test_missing_columns_are_named(columns, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_table(OVERTRAIN, columns)


def test_a_table_without_usable_rows(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no row of 104 meets ds=nothing"):
        load_table(OVERTRAIN, GADRE, ["ds=nothing"])
    path = folder(tmp_path / "sweep", [row(0, status="failed"), row(1, status="failed")])
    with pytest.raises(ConfigError, match=r"no run is left to fit: 2 with status failed \(run0, run1\)"):
        load_table(path, Columns())


def test_unfinished_runs_are_set_aside_by_name(tmp_path) -> None:
    states = ["done", "failed", "diverged", "stale", "running", "", "done"]
    table = load_table(folder(tmp_path / "s", [row(k, status=state) for k, state in enumerate(states)]), Columns())
    assert [table.id_of(line) for line in table.rows] == ["run0", "run6"]
    assert {(item.id, item.reason) for item in table.set_aside} == {
        ("run1", "status failed"),
        ("run2", "status diverged"),
        ("run3", "status stale"),
        ("run4", "status running"),
        ("run5", "status (empty)"),
    }


@pytest.mark.parametrize("value", [None, float("nan"), "nan", "", 0.0, -1.0, "oops", float("inf"), True])
def test_invalid_losses_are_set_aside_by_name(tmp_path, value) -> None:
    rows = [row(k) for k in range(3)]
    rows[1]["losses"] = {"text": value, "caption": 2.0}
    table = load_table(folder(tmp_path / "s", rows), Columns())
    runs, aside = table.runs("losses.text")
    assert runs.id == ("run0", "run2")
    assert [item.id for item in aside] == ["run1"]
    assert "1 with losses.text is" in count(aside)
    # Its other loss is still usable.
    assert len(table.runs("losses.caption")[0]) == 3


def test_a_loss_that_no_run_has(tmp_path) -> None:
    rows = [row(k, losses={"text": None}) for k in range(3)]
    with pytest.raises(ConfigError, match=r"no run has a usable losses\.text: 3 with"):
        load_table(folder(tmp_path / "s", rows), Columns()).runs("losses.text")


@pytest.mark.parametrize("column", ["n_active", "tokens", "flops"])
@pytest.mark.parametrize("value", [None, 0, -5, "many"])
def test_invalid_sizes_are_set_aside_by_name(tmp_path, column, value) -> None:
    table = load_table(folder(tmp_path / "s", [row(0), row(1, **{column: value})]), Columns())
    assert [table.id_of(line) for line in table.rows] == ["run0"]
    assert table.set_aside[0].id == "run1"
    assert table.set_aside[0].reason.startswith(column)


def test_a_repeated_line_counts_once(tmp_path) -> None:
    table = load_table(folder(tmp_path / "s", [row(0), row(1), row(0)]), Columns())
    assert len(table.rows) == 2
    assert count(table.set_aside) == "1 with repeated line (run0)"
    nameless = [{name: value for name, value in row(k).items() if name != "id"} for k in (0, 1, 0)]
    table = load_table(folder(tmp_path / "s", nameless), Columns())
    assert [table.id_of(line) for line in table.rows] == ["row 1", "row 2"]
    assert count(table.set_aside) == "1 with repeated line (row 1)"


@pytest.mark.parametrize("column", ["", "Unnamed: 0", "index"])
def test_the_row_numbers_of_pandas_do_not_make_equal_rows_different(tmp_path, column) -> None:
    (tmp_path / "runs.csv").write_text(f"{column},N,D,loss\n0,1e8,2e9,3.0\n1,2e8,2e9,2.9\n2,1e8,2e9,3.0\n")
    columns = Columns(n="N", d="D", losses=("loss",))
    table = load_table(tmp_path / "runs.csv", columns)
    assert [table.id_of(line) for line in table.rows] == ["row 1", "row 2"]
    assert count(table.set_aside) == "1 with repeated line (row 1)"
    named = load_table(tmp_path / "runs.csv", replace(columns, id=column))
    assert [named.id_of(line) for line in named.rows] == ["0", "1", "2"]


def test_rows_without_an_id_beside_rows_with_one(tmp_path) -> None:
    rows = [row(0), row(1, id=None), row(2, id=""), row(1, id=None)]
    table = load_table(folder(tmp_path / "s", rows), Columns())
    assert [table.id_of(line) for line in table.rows] == ["run0", "row 2", "row 3"]
    assert count(table.set_aside) == "1 with repeated line (row 2)"


def test_a_repeated_line_of_parquet_with_an_empty_number(tmp_path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [{"id": "a", "N": 1e8, "D": 2e9, "loss": 3.0, "note": float("nan")}] * 2
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "runs.parquet")
    assert len(load_table(tmp_path / "runs.parquet", Columns(n="N", d="D", losses=("loss",))).rows) == 1


def test_two_parquet_columns_of_one_name_are_refused(tmp_path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    table = arrow.Table.from_arrays([arrow.array([1.0]), arrow.array([2.0])], names=["N", "N"])
    parquet.write_table(table, tmp_path / "runs.parquet")
    with pytest.raises(ConfigError, match=r"runs\.parquet: several columns are named 'N'"):
        read_rows(tmp_path / "runs.parquet")


def test_one_id_for_two_runs_is_refused(tmp_path) -> None:
    rows = [row(0), row(1), row(1, tokens=4e9), row(2), row(2, tokens=4e9)]
    with pytest.raises(ConfigError, match=r"2 ids have several different rows: 'run1', 'run2'"):
        load_table(folder(tmp_path / "s", rows), Columns())


@pytest.mark.parametrize("column", ["tokenizer", "evaluation_set"])
@pytest.mark.parametrize("other", ["t2", None])
def test_mixed_tokenizers_and_evaluation_sets_are_refused(tmp_path, column, other) -> None:
    rows = [row(0), row(1), row(2, **{column: other})]
    path = folder(tmp_path / "s", rows)
    with pytest.raises(ConfigError, match=rf"2 different values of '{column}' are mixed: .1 \(2 runs\)"):
        load_table(path, Columns()).runs("losses.text")
    first = rows[0][column]
    assert len(load_table(path, Columns(), [f"{column}={first}"]).runs("losses.text")[0]) == 2
    # Rows that are not fitted do not count.
    rows[2]["status"] = "failed"
    assert len(load_table(folder(tmp_path / "t", rows), Columns()).runs("losses.text")[0]) == 2


def test_one_law_for_each_value_of_a_column(tmp_path) -> None:
    rows = [row(k, design="dense" if k < 4 else "experts", tokenizer="t1" if k < 4 else "t2") for k in range(6)]
    table = load_table(folder(tmp_path / "s", rows), Columns(by="design"))
    groups = {name: len(part.runs("losses.text")[0]) for name, part in table.groups()}
    assert groups == {"dense": 4, "experts": 2}  # each with its own tokenizer


def test_the_old_name_of_a_column_is_refused(tmp_path) -> None:
    rows = [{"trunk" if key == "stable_run" else key: value for key, value in row(k).items()} for k in range(3)]
    path = folder(tmp_path / "s", rows)
    with pytest.raises(ConfigError, match="'trunk' is named stable_run now; to use it, give --stable-run trunk"):
        load_table(path, Columns())
    assert len(load_table(path, Columns(stable_run="trunk")).rows) == 3


def test_stable_runs_are_read_for_a_law_of_the_schedule(tmp_path) -> None:
    rows = [row(0, stable_run="run2"), row(1, status="failed"), row(2, status="stable", decay=0.0)]
    rows.append({"id": "run3", "status": "stable", "n_active": 1e8, "tokens": 2e9, "flops": 1e18, "decay": 0.0})
    path = folder(tmp_path / "sweep", rows)
    assert [item.reason for item in load_table(path, Columns()).set_aside] == [
        "status failed",
        "status stable",
        "status stable",
    ]
    table = load_table(path, Columns(), undecayed=True)
    assert [table.id_of(one) for one in table.rows] == ["run0", "run2", "run3"]
    (loss, *_) = table.columns.losses
    runs, aside = table.runs(loss, ("decay",))
    assert runs.cluster == ("run2",)
    assert [item.reason for item in aside] == ["decay is empty", "losses.text is empty"]
