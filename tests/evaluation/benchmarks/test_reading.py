"""What goes wrong with the files of a benchmark, and where its rows and images may be."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from solo.config import ConfigError
from solo.evaluation.benchmarks.definitions import BENCHMARKS
from tests.evaluation.benchmarks.layouts import PICTURES, encoded, parquet, tsv

ROW = {"index": 1, "question": "Left?", "answer": "left", "image": encoded(0)}


def read(*paths, task="gqa"):
    return list(BENCHMARKS[task].read([str(path) for path in paths]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": ""},
            r"row 2: column 'answer' holds no answer \(None\); answers of test splits are often not public",
        ),
        ({"answer": "['']"}, "row 2: column 'answer' holds no answer"),
        ({"question": " "}, "row 2: column 'question' must be a text, not ' '"),
        ({"index": ""}, "row 2: column 'index' is empty"),
        ({"index": 1}, r"row 2: has the id '1' of .*\.tsv, row 1"),
        ({"image": ""}, "row 2: column 'image' holds no image"),
        ({"image": "17"}, "row 2: column 'image' names the image '17', which does not exist"),
        (
            {"image": "missing.png"},
            r"row 2: column 'image' cannot be read as an image: the file does not exist: .*missing\.png",
        ),
        ({"image": "bm90IGFuIGltYWdl" * 8}, "row 2: column 'image' cannot be read as an image"),
    ],
)
def test_a_fault_names_file_row_and_column(change, message, tmp_path) -> None:
    path = tsv(tmp_path / "file.tsv", [ROW, ROW | {"index": 2} | change])
    with pytest.raises(ConfigError, match=rf"benchmark 'gqa': {path}, {message}"):
        read(path)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("pope", {"answer": "maybe", "category": "random"}, "column 'answer' is 'maybe', not one of yes, no"),
        ("textvqa", {"answer": "['a', 'b']"}, "column 'answer' holds 2 answers; the metric needs at least 4 ann"),
        (
            "ai2d",
            {"A": "x", "B": "", "answer": "A"},
            "column 'A' and the other columns of options hold fewer than two options",
        ),
        (
            "mme",
            {"category": "", "image_path": "a", "answer": "Yes"},
            "column 'category' is empty, but the score depends",
        ),
        ("ai2d", {"A": "x", "B": "y", "answer": "C"}, "column 'answer' is 'C', but the options are A, B"),
        ("ai2d", {"A": "x", "B": "", "C": "y", "answer": "1"}, "column 'answer' is '1', but the options are A, C"),
        (
            "mme",
            {"category": "Existence", "image_path": "a", "answer": "Yes"},
            "column 'category' is 'Existence', not one of existence, count",
        ),
    ],
)
def test_an_answer_that_cannot_be_scored(task, row, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=f"row 1: {message}"):
        read(tsv(tmp_path / "file.tsv", [ROW | row]), task=task)


def test_a_missing_column_lists_those_there_are(tmp_path) -> None:
    row = {key: value for key, value in ROW.items() if key != "answer"}
    with pytest.raises(
        ConfigError, match=r"has no column for the answer: answers or answer\ncolumns: index, question, image"
    ):
        read(tsv(tmp_path / "a.tsv", [row]))
    with pytest.raises(ConfigError, match="no column for label 'category': category"):
        read(tsv(tmp_path / "b.tsv", [ROW | {"answer": "Yes"}]), task="mme")
    with pytest.raises(ConfigError, match=r"no column for the options: A or B or options"):
        read(tsv(tmp_path / "b.tsv", [ROW]), task="ai2d")
    with pytest.raises(ConfigError, match=r"no column for the image: .*\ncolumns:\n  id: string"):
        read(parquet(tmp_path / "a.parquet", [{"id": "1", "question": "Left?", "answer": "left"}]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is neither a TSV file with a header nor a parquet"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is neither a TSV file with a header nor a parquet"),
        (b"PAR1 cut off", "the file cannot be read"),
        ("index\tquestion".encode("utf-16"), r"parquet or Arrow file; it is UTF-16 text \(save it as UTF-8\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "parquet or Arrow file; it is a Git LFS pointer"),
        (b"index\tquestion\tanswer\timage\n", "has no rows"),
        (b"index\tquestion\tquestion\timage\n", "has two columns 'question'"),
        (
            b"index\tquestion\tanswer\timage\n1\tLeft?\n",
            "row 1 or a later one cannot be read: row 1: Expected 4 columns, got 2$",
        ),
        (
            b"index\tquestion\tanswer\timage\n1\t\xff\xfe\tleft\tx\n",
            "row 1 or a later one cannot be read: In CSV column #1: row 1: .*; save the file as UTF-8$",
        ),
    ],
)
def test_files_that_cannot_be_read(content, message, tmp_path) -> None:
    path = tmp_path / "file.tsv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_paths_that_say_too_little(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no \.tsv, \.parquet or \.arrow files"):
        read(tmp_path)
    tsv(tmp_path / "a.tsv", [ROW])
    parquet(tmp_path / "a.parquet", [{"id": "1", "question": "Left?", "answer": "left", "image": PICTURES[0]}])
    with pytest.raises(ConfigError, match=r"holds \.parquet and \.tsv files; name those to read"):
        read(tmp_path)


def test_a_folder_means_its_split(tmp_path) -> None:
    row = {"questionId": "1", "question": "Which?", "answers": ["12"], "image": PICTURES[0]}
    for folder in ("DocVQA", "InfographicVQA"):
        for split in ("test", "validation"):
            for shard in range(2):
                name = f"{split}-0000{shard}-of-00002.parquet"
                parquet(tmp_path / folder / name, [row | {"questionId": f"{folder} {split} {shard}"}])
    assert [item.id for item in read(tmp_path, task="docvqa")] == ["DocVQA validation 0", "DocVQA validation 1"]
    assert read(tmp_path / "InfographicVQA", task="infovqa")[1].id == "InfographicVQA validation 1"
    for split in ("adversarial", "popular", "random"):
        pope = {"question_id": 1, "question": "A dog?", "answer": "no", "category": split, "image": PICTURES[0]}
        for path in (tmp_path / "converted" / split / "0000.parquet", tmp_path / "Full" / f"{split}-0-of-1.parquet"):
            parquet(path, [pope])
    for splits in (tmp_path / "converted", tmp_path / "Full"):
        assert [item.id for item in read(splits, task="pope")] == ["adversarial/1", "popular/1", "random/1"]
    with pytest.raises(
        ConfigError, match="holds several tables, none of a known split; name those to read: adversarial"
    ):
        read(splits, task="docvqa")


def test_a_folder_of_the_train_split_is_no_benchmark(tmp_path) -> None:
    for name in ("train-00000-of-00001.parquet", "train/0000.parquet"):
        folder = tmp_path / str(len(name))
        path = parquet(folder / name, [{"id": "1", "question": "Left?", "answer": "left", "image": PICTURES[0]}])
        with pytest.raises(ConfigError, match="holds the split train alone, not testdev; name its files"):
            read(folder)
        assert len(read(path)) == 1


def test_rows_without_ids_are_numbered_over_all_files(tmp_path) -> None:
    row = {"question": "How many?", "answer": "2", "image": PICTURES[0]}
    paths = [parquet(tmp_path / f"{name}.parquet", [row, row]) for name in "ab"]
    items = read(*paths, task="chartqa")
    assert [item.id for item in items] == ["1", "2", "3", "4"]
    assert [(item.place.file, item.place.line) for item in items[1:3]] == [(paths[0], 2), (paths[1], 1)]


def test_images_in_files_and_in_other_rows(tmp_path) -> None:
    (tmp_path / "images" / "file").mkdir(parents=True)
    (tmp_path / "beside.png").write_bytes(PICTURES[2].data)
    (tmp_path / "images" / "file" / "b.png").write_bytes(PICTURES[3].data)
    rows = [
        ROW | {"image": "3"},  # points forward
        ROW | {"index": 2, "image": "", "image_path": "beside.png"},
        ROW | {"index": 3, "image": encoded(1)},
        ROW | {"index": 4, "image": "", "image_path": "['beside.png', 'b.png']"},
    ]
    items = read(tsv(tmp_path / "file.tsv", rows))
    assert [item.images for item in items] == [(PICTURES[1],), (PICTURES[2],), (PICTURES[1],), PICTURES[2:]]


def test_text_that_looks_missing_is_kept_and_large_rows_are_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("solo.evaluation.benchmarks.rows._BLOCKS", (1 << 10, 1 << 14))
    rows = [
        ROW | {"question": 'A "quoted"\nline\tand tab?', "answer": "None"},
        ROW | {"index": 2, "answer": "NA", "question": "x" * 3000},
        ROW | {"index": 3, "answer": "nan"},
    ]
    path = tmp_path / "file.tsv.gz"
    path.write_bytes(gzip.compress(Path(tsv(tmp_path / "file.tsv", rows)).read_bytes()))
    for items in (read(path), read(tmp_path / "file.tsv")):
        assert [item.references for item in items] == [("None",), ("NA",), ("nan",)]
        assert items[0].question == 'A "quoted"\nline\tand tab?'
        assert len(items[1].question) == 3000


def test_numbers_that_are_none_are_missing_options(tmp_path) -> None:
    row = {"question": "Left?", "A": "left", "B": "right", "C": float("nan"), "hint": float("nan"), "answer": "B"}
    path = parquet(tmp_path / "a.parquet", [{**row, "image": PICTURES[0]}])
    (item,) = read(path, task="scienceqa_img")
    assert (item.options, item.hint) == ({"A": "left", "B": "right"}, "")


def test_lists_with_missing_options_and_written_as_text(tmp_path) -> None:
    rows = [
        {"options": ["nan", None, "dog"], "answer": "2"},
        {"options": ["", "cat", "dog"], "answer": "2"},
    ]
    path = parquet(tmp_path / "a.parquet", [{"question": "Which?", "image": PICTURES[0], **row} for row in rows])
    items = read(path, task="ai2d")
    assert [item.options for item in items] == [{"A": "nan", "C": "dog"}, {"A": "", "B": "cat", "C": "dog"}]
    assert [item.references for item in items] == [("C",), ("C",)]
    answers = {
        "['a', 'b']": ("a", "b"),
        "['it\\'s' \"b's\"\n 'c, d']": ("it's", "b's", "c, d"),  # as NumPy writes it, which pandas does
        "[\"x ' ' y\"]": ("x ' ' y",),
        '["a", true]': ("a", "True"),  # JSON
    }
    rows = [{"questionId": str(number), "answers": text} for number, text in enumerate(answers)]
    rows = [{"question": "Which?", "image": PICTURES[0], **row} for row in rows]
    path = parquet(tmp_path / "b.parquet", rows)
    assert [item.references for item in read(path, task="docvqa")] == list(answers.values())
    path = tsv(tmp_path / "b.tsv", [{**row, "image": encoded(0)} for row in rows])
    assert [item.references for item in read(path, task="docvqa")] == list(answers.values())


def test_numbers_as_answers(tmp_path) -> None:
    row = {"question": "How many?", "image": PICTURES[0]}
    path = parquet(tmp_path / "a.parquet", [row | {"answer": value} for value in (0.0, 2.5, 1e20)])
    assert [item.references for item in read(path, task="chartqa")] == [("0",), ("2.5",), ("100000000000000000000",)]
    path = parquet(tmp_path / "b.parquet", [row | {"choices": ["a", "b"], "answer": 1.0}])
    assert read(path, task="scienceqa_img")[0].references == ("B",)
    path = parquet(tmp_path / "c.parquet", [row | {"answer": value} for value in (3.0, float("nan"))])
    with pytest.raises(ConfigError, match=r"row 2: column 'answer' holds no answer \(nan\)"):
        read(path, task="chartqa")


def test_values_of_a_label_with_spaces_between_them(tmp_path) -> None:
    (item,) = read(tsv(tmp_path / "a.tsv", [ROW | {"answer": "yes", "category": "random, popular"}]), task="pope")
    assert item.labels == {"category": "random|popular"}


def test_rotations_whose_numbers_pandas_made_floats(tmp_path) -> None:
    row = {"question": "Which?", "A": "a", "B": "b", "answer": "A", "image": encoded(0)}
    rows = [
        row | {"index": "007", "g_index": 7.0},
        row | {"index": "1000007", "g_index": 7.0, "answer": "B", "image": "007"},
        row | {"index": "8", "g_index": ""},
    ]
    for columns in (rows, [{key: value for key, value in each.items() if key != "g_index"} for each in rows]):
        items = read(tsv(tmp_path / "a.tsv", columns), task="mmbench")
        assert [(item.id, [each.id for each in item.variants]) for item in items] == [("007", ["1000007"]), ("8", [])]


def test_a_mapping_of_nothing_is_no_image(tmp_path) -> None:
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 1}
    images = [{"bytes": PICTURES[0].data, "path": None}, {"bytes": None, "path": None}]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"image": image} for image in images]), path)
    reasons: list[str] = []
    (item,) = BENCHMARKS["scienceqa_img"].read([str(path)], reasons.append)
    assert (item.images, reasons) == (PICTURES[:1], ["a question without an image"])
    with pytest.raises(ConfigError, match="row 2: column 'image' holds no image"):
        read(path, task="chartqa")


def test_damage_in_a_table_is_reported(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["a"] * 9, "answer": ["b"] * 9, "image": [b"x"] * 9}), path)
    data = bytearray(path.read_bytes())
    data[40:60] = b"\0" * 20
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match=r"a\.parquet: row 1: .*cannot be read"):
        read(path)
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"], "image": [b"x"]}), path)
    with pytest.raises(ConfigError, match="column 'image' cannot be read as an image"):
        read(path)
