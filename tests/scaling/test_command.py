"""`solo fit`, from a table to JSON and a report."""

import hashlib
import json
import re
import shlex

import numpy as np
import pytest
import yaml

from solo.cli import main
from tests.evaluation.test_report import Page
from tests.scaling.samples import OVERTRAIN, TRUTH, isoflop

GADRE = ["fit", str(OVERTRAIN), "--n", "N", "--d", "D", "--loss", "loss_c4_val", "--where", "ds=rpj", "--draws", "100"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs the command once with all outputs. Returns its words, what it printed, JSON, page."""
    folder = tmp_path_factory.mktemp("fit")
    words = [*GADRE, "--predict", "1e22", "--predict", "1e25", "--score", "err17", "--score-is-error"]
    words += ["--predict", "1e9"]  # in GFLOPs, by mistake
    words += ["--chance", "0.75", "--json", str(folder / "out.json"), "--report", str(folder / "out.html")]
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(words) == 0
    return words, printed.getvalue(), json.loads((folder / "out.json").read_text()), (folder / "out.html").read_text()


def sweep_folder(path, **changes) -> str:
    """Writes the results of a sweep on a known law with two losses; `changes` replaces entries of a row."""
    runs = isoflop(noise=0.002)
    rows = []
    for place in range(len(runs)):
        row = {
            "id": f"point-{place}",
            "status": "done",
            "n_active": runs.n[place],
            "n_total": 2 * runs.n[place],
            "tokens": runs.d[place],
            "flops": 1.1 * runs.flops[place],
            "losses": {"text": runs.loss[place], "caption": 0.7 * runs.loss[place]},
            "tokenizer": "t1",
            "evaluation_set": "e1",
            "design": "dense" if place % 7 < 5 else "experts",
        }
        rows.append({**row, **changes.get(f"p{place}", {})})
    path.mkdir()
    (path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_json_holds_the_law(made) -> None:
    words, _, found, _ = made
    assert set(found["coefficients"]) == {"E", "A", "B", "alpha", "beta"}
    coefficients, intervals = found["coefficients"], found["intervals"]
    assert found["exponents"]["a"] == pytest.approx(
        coefficients["beta"] / (coefficients["alpha"] + coefficients["beta"])
    )
    for name, value in {**coefficients, **found["exponents"]}.items():
        (low, high), (lowest, highest) = intervals[name]["80"], intervals[name]["95"]
        assert lowest <= low <= high <= highest
        assert lowest < value < highest
    assert 0 < found["objective"]["value"] < 1e-3
    assert found["objective"]["name"] == "huber"
    assert found["command"] == shlex.join(["solo", *words])
    assert found["data"]["sha256"] == hashlib.sha256(OVERTRAIN.read_bytes()).hexdigest()
    assert (found["data"]["rows"], found["data"]["chosen"], found["runs"]) == (104, 35, 35)
    assert found["fits"] == [{name: found[name] for name in found["fits"][0]}]


def test_the_json_holds_the_hold_out_and_the_predictions(made) -> None:
    *_, found, _ = made
    (run,) = found["hold_out"]["runs"]
    assert run["id"] == "rpj-open_lm_1b-32.0"
    assert run["error"] == pytest.approx(run["predicted"] / run["actual"] - 1)
    assert found["hold_out"]["mean_error"] == pytest.approx(abs(run["error"]))
    assert found["hold_out"]["mean_error"] < 0.01
    assert found["hold_out"]["fitted"] == 34
    near, far, below = found["predictions"]
    assert (near["flops"], near["far"], far["far"], below["far"]) == (1e22, False, True, True)
    assert 6 * near["n"] * near["d"] == pytest.approx(1e22)
    assert near["intervals"]["loss"]["80"][0] < near["loss"] < near["intervals"]["loss"]["95"][1]
    assert far["extrapolation"] > 1000
    assert {law["form"] for law in found["downstream"]["laws"]} == {"exponential", "sigmoid"}
    assert [row["flops"] for row in found["downstream"]["predictions"]] == [1e22, 1e25, 1e9]


def test_output_on_the_terminal(made) -> None:
    _, printed, found, _ = made
    assert "104 rows, 35 to fit, sha256 1b5faedf" in printed
    assert "L = E + A/N^alpha + B/D^beta" in printed
    actual = found["hold_out"]["runs"][0]
    assert f"{actual['predicted']:.4f}" in printed
    assert f"{actual['actual']:.4f}" in printed
    assert "34 cheaper runs predict the 1 most expensive" in printed
    assert printed.count("1e+25 FLOPs is beyond 100 x the largest run") == 1
    assert printed.count("1e+09 FLOPs is below 1/100 of the smallest run") == 1


def test_the_report_is_self_contained_and_complete(made) -> None:
    words, _, found, html = made
    shown = Page(html)
    assert not shown.of("script")
    assert not shown.of("link")
    assert len(shown.of("svg")) == 6
    assert all(attributes["aria-label"] for attributes in shown.of("svg"))
    for title in ("Loss against compute", "Optimal size and tokens", "Sizes and tokens", "Residuals"):
        assert title in shown.text
    assert found["data"]["sha256"] in shown.text
    assert shlex.join(["solo", *words]) in shown.text
    assert f"{found['hold_out']['runs'][0]['predicted']:.4f}" in shown.text
    assert "built-in method" not in shown.text
    assert "nan" not in re.findall(r"[a-z]+", shown.text)
    # Across figures, ids are unique and references resolve; colours are those of the page.
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:xlink:href="|url\()#([^")]*)', html)) <= set(ids)
    assert "var(--accent)" in html
    assert "#35548f;" not in html.partition("</style>")[2]
    outside = set(re.findall(r'https?://[^"\s<]*', html)) - {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not outside


def test_a_sweep_gives_a_law_for_each_loss(tmp_path, capsys) -> None:
    path = sweep_folder(tmp_path / "sweep", p3={"status": "diverged"}, p9={"losses": {"text": None, "caption": 2.0}})
    out = tmp_path / "out.json"
    html = tmp_path / "out.html"
    assert main(["fit", path, "--draws", "100", "--json", str(out), "--report", str(html)]) == 0
    found = json.loads(out.read_text())
    assert "coefficients" not in found  # there are two laws
    text, caption = found["fits"]
    assert (text["loss"], caption["loss"]) == ("losses.text", "losses.caption")
    assert (text["runs"], caption["runs"]) == (33, 34)
    assert text["coefficients"]["alpha"] == pytest.approx(TRUTH["alpha"], rel=0.1)
    assert caption["coefficients"]["E"] == pytest.approx(0.7 * TRUTH["E"], rel=0.05)
    assert text["flops_per_parameter_and_token"] == pytest.approx(6.6)
    assert text["cross_checks"][0]["exponent"] == pytest.approx(text["exponents"]["a"], abs=0.05)
    printed = capsys.readouterr().out
    assert "1 with status diverged (point-3)" in printed
    assert "1 with losses.text is empty (point-9)" in printed
    shown = Page(html.read_text())
    assert re.search(r"point-3\s*status diverged", shown.text)
    assert re.search(r"point-9\s*losses.text is empty", shown.text)
    assert "Equal compute" in shown.text
    anchors = [attributes["href"] for attributes in shown.of("a")]
    assert anchors == ["#part-1", "#part-2"]
    assert all(f'id="{anchor[1:]}"' in html.read_text() for anchor in anchors)


def test_a_refused_law_does_not_affect_the_others(tmp_path, capsys) -> None:
    path = sweep_folder(tmp_path / "sweep")
    out, html = tmp_path / "out.json", tmp_path / "out.html"
    words = ["fit", path, "--loss", "text", "--by", "design", "--where", "flops<2e20", "--draws", "100"]
    assert main([*words, "--where", "flops>2e18", "--json", str(out), "--report", str(html)]) == 1
    dense, experts = json.loads(out.read_text())["fits"]
    assert (dense["group"], dense["refused"], dense["runs"]) == ("dense", None, 10)
    assert "4 runs are too few" in experts["refused"]
    assert "coefficients" not in experts
    printed = capsys.readouterr().out
    assert "Refused: 4 runs are too few" in printed
    assert "Hold-out not possible: 5 runs are too few" in printed
    assert "Refused: 4 runs are too few" in Page(html.read_text()).text


@pytest.mark.parametrize("law", ["power"])
def test_reports_of_other_laws(tmp_path, law) -> None:
    html = tmp_path / "out.html"
    assert main([*GADRE, "--law", law, "--predict", "1e22", "--report", str(html)]) == 0
    assert "Loss against compute" in Page(html.read_text()).text


def test_repeated_tokens(tmp_path, capsys) -> None:
    from solo.scaling.laws.catalogue import REPEATED
    from tests.scaling.samples import grid

    unique = np.full(36, 1e10)
    runs = grid(6, 6, noise=0.001, truth={**TRUTH, "R": 12.0}, law=REPEATED, unique=unique)
    lines = ["n,d,u,loss", *(f"{n},{d},1e10,{loss}" for n, d, loss in zip(runs.n, runs.d, runs.loss, strict=True))]
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    words = ["fit", str(tmp_path / "runs.csv"), "--n", "n", "--d", "d", "--unique", "u", "--loss", "loss"]
    words += ["--law", "repeated", "--draws", "100", "--predict", "1e22", "--predict-unique", "1e10"]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["coefficients"]["R"] == pytest.approx(12.0, rel=0.2)
    assert found["predictions"][0]["at"] == {"unique": 1e10}


def test_simulate(tmp_path, capsys) -> None:
    spec = tmp_path / "design.yaml"
    design = {"isoflop": {"budgets": [1e17, 1e18, 1e19, 1e20], "points": 7}}
    spec.write_text(yaml.safe_dump({"design": design, "predict": 1e22, "datasets": 30}))
    out = tmp_path / "out.json"
    assert main(["fit", "simulate", str(spec), "--json", str(out)]) == 0
    assert "28 runs (28 independent)" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["intervals"]["n"]["80"][0] < found["truth"]["n"] < found["intervals"]["n"]["80"][1]
    spec.write_text(yaml.safe_dump({"design": {"runs": [[1e8, 1e9], [2e8, 1e9]]}, "predict": 1e22}))
    assert main(["fit", "simulate", str(spec)]) == 1
    assert "refused: 2 runs are too few" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "cannot read results missing.csv"),
        ([str(OVERTRAIN), "--loss", "err17"], "no column 'n_active'"),
        ([*GADRE[1:], "--where", "ds=none"], "no row of 104"),
        ([*GADRE[1:], "--predict", "-5"], "expected FLOPs, as in 1e24, or a machine and hours"),
        ([*GADRE[1:], "--predict", "1e22", "--predict-unique", "1e9"], "does not model repeated tokens"),
        ([*GADRE[1:], "--draws", "3"], "--draws at least 100"),
        ([*GADRE[1:], "--hold-out", "nan"], "--hold-out nan: expected FLOPs, above 0"),
        ([*GADRE[1:], "--chance", "-0.1"], "--chance -0.1: expected a score"),
        (
            [*GADRE[1:], "--law", "repeated", "--predict", "1e22", "--predict-unique", "0"],
            "--predict-unique 0: expected a number of distinct tokens",
        ),
        ([*GADRE[1:], "--seed", "-1"], "--seed must be at least 0"),
        ([*GADRE[1:], "--drop-highest", "200"], "--drop-highest 200 leaves none of the"),
        (
            [*GADRE[1:], "--draws", "100", "--json", str(OVERTRAIN.parent)],
            f"--json {OVERTRAIN.parent}: cannot be written: it is a folder",
        ),
        ([str(OVERTRAIN), "more.csv"], "unexpected 'more.csv'"),
        (["simulate"], "needs a YAML file"),
        ([*GADRE[1:], "--trunk", ""], "--trunk is named --stable-run now"),
        ([*GADRE[1:], "--trunk", "parent"], "--trunk is named --stable-run now"),
        (["simulate", "missing.yaml"], "cannot read config missing.yaml"),
    ],
)
def test_wrong_use_gives_one_line_and_status_2(arguments, message, capsys) -> None:
    assert main(["fit", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("solo: ")
    assert message in error
