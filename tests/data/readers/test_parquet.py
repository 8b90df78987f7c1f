"""The parquet reader, on tables that datasets and pyarrow write."""

import bz2
import decimal
import gzip
import json
import lzma
import os
import random
import re
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import Ignored, Omitted, Unreadable, open_reader, read
from solo.data.readers import tables as module
from solo.data.record import Place, Record, Turn, encode_png

RED, BLUE = (encode_png(PillowImage.new("RGB", (3, 2), colour)) for colour in ("red", "blue"))
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def examples(path, **options):
    return [e for e in read("parquet", {"path": str(path)} | options) if not isinstance(e, Ignored)]


def reasons(path, **options):
    return [e.reason if isinstance(e, Unreadable) else None for e in examples(path, **options)]


def write(path, columns, schema=None, **options):
    pq.write_table(pa.table(columns, schema=pa.schema(schema) if schema else None), path, **options)
    return path


def caption(*content):
    return (Turn("text", content),)


def said(user, answer):
    return (Turn("user", user), Turn("assistant", (answer,)))


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "red.png").write_bytes(RED.data)
    return tmp_path


# -------------------------------------------------------------------------------------------- layouts


def test_captions_of_datasets(tmp_path):
    """Images as datasets embeds them: a struct of bytes and path."""
    for name, image in (("red", RED), ("blue", BLUE)):
        (tmp_path / f"{name}.png").write_bytes(image.data)
    files = [str(tmp_path / f"{name}.png") for name in ("red", "blue")]
    columns = {"image": files, "caption": ["a", "b"], "url": ["", ""]}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "a.parquet")
    found = list(read("parquet", {"path": str(tmp_path / "a.parquet")}))
    assert found == [
        Ignored("url", Place(str(tmp_path / "a.parquet"), 1)),
        Record("a.parquet:1", caption(RED, "a")),
        Record("a.parquet:2", caption(BLUE, "b")),
    ]
    assert [record.place.line for record in found[1:]] == [1, 2]


def test_an_image_column_of_any_name_is_known_from_the_features_of_datasets(tmp_path):
    features = datasets.Features({"photo": datasets.Image(), "text": datasets.Value("string")})
    rows = {"photo": [{"bytes": RED.data, "path": None}], "text": ["a"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    (record,) = examples(tmp_path / "a.parquet")
    assert record.turns == caption(RED, "a")


def test_class_labels_become_their_names(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench, Tinca tinca", "goldfish"])}
    )
    rows = {"image": [{"bytes": RED.data, "path": None}] * 3, "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    *named, last = examples(tmp_path / "a.parquet")
    assert [record.turns for record in named] == [caption(RED, "goldfish"), caption(RED, "tench, Tinca tinca")]
    assert last.reason == "its label is -1, which is none of the 2 classes"


IMAGE = {"bytes": RED.data, "path": None}
SAID = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So."}]
ASKED = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Why?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "So."}]},
]


@pytest.mark.parametrize(
    ("row", "options", "turns"),
    [
        ({"image": RED.data, "text": "a"}, {}, caption(RED, "a")),
        ({"jpg": RED.data, "txt": "a"}, {}, caption(RED, "a")),
        ({"image": "red.png", "text": "a"}, {"images": "FOLDER"}, caption(RED, "a")),
        ({"image": {"bytes": None, "path": "red.png"}, "text": "a"}, {"images": "FOLDER"}, caption(RED, "a")),
        ({"images": [IMAGE, {"bytes": BLUE.data, "path": "b.png"}], "text": "a"}, {}, caption(RED, BLUE, "a")),
        ({"left": IMAGE, "re": "a"}, {"image": "left", "text": "re"}, caption(RED, "a")),
        ({"text": "alone"}, {}, caption("alone")),
        ({"image": IMAGE, "question": "Why?", "answer": "So."}, {}, said((RED, "Why?"), "So.")),
        ({"image": IMAGE, "q": "Why?", "a": "So."}, {"question": "q", "text": "a"}, said((RED, "Why?"), "So.")),
        ({"image": IMAGE, "conversations": SAID}, {}, said((RED, "\nWhy?"), "So.")),
        ({"image": IMAGE, "conversations": json.dumps(SAID)}, {}, said((RED, "\nWhy?"), "So.")),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": IMAGE}]}, *ASKED[1:]]},
            {},
            said((RED,), "So."),
        ),
        ({"images": [IMAGE], "messages": ASKED}, {}, said((RED, "Why?"), "So.")),
        (
            {"images": None, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            {},
            said(("Hi",), "Ho"),
        ),
        (
            {"image": IMAGE, "conversations": SAID, "system": "Be."},
            {},
            (Turn("system", ("Be.",)), *said((RED, "\nWhy?"), "So.")),
        ),
        ({"images": [IMAGE], "texts": [{"user": "Why?", "assistant": "So."}]}, {}, said((RED, "\nWhy?"), "So.")),
        ({"images": [], "texts": [{"user": "Why?", "assistant": "So."}]}, {}, said(("Why?",), "So.")),
    ],
)
def test_layouts(pictures, row, options, turns):
    schema = None
    if "images" in row and row["images"] in (None, []):
        schema = {"images": pa.list_(STRUCT)} | {k: pa.infer_type([v]) for k, v in row.items() if k != "images"}
    write(pictures / "a.parquet", {key: [value] for key, value in row.items()}, schema)
    options = {key: value.replace("FOLDER", str(pictures)) for key, value in options.items()}
    (record,) = examples(pictures / "a.parquet", **options)
    assert record.turns == turns


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"image": "https://x/y.jpg", "text": "a"}, {}, "it is a web address, and nothing is fetched"),
        ({"image": "gone.png", "text": "a"}, {}, "the file does not exist: ./gone.png"),
        ({"image": {"bytes": None, "path": None, "x": 1}, "text": "a"}, {}, "'bytes', 'path' or 'url'"),
        ({"image": None, "text": "a"}, {}, "its image is null"),
        ({"images": [IMAGE, None], "text": "a"}, {}, "not null"),
        ({"image": IMAGE, "text": None}, {}, "its text is null"),
        (
            {"image": IMAGE, "text": "a", "weight": 0.5},
            {},
            "its 'weight' is 0.5, but only sources and",
        ),
        ({"image": IMAGE, "text": " "}, {}, "its text is empty"),
        ({"image": IMAGE, "question": None, "answer": "So."}, {}, "its question is not a text"),
        ({"images": [IMAGE, IMAGE], "conversations": SAID}, {}, "1 <image> in the text for 2 images"),
        ({"image": IMAGE, "conversations": "hello"}, {}, "conversations is neither a list of messages nor JSON"),
        ({"image": IMAGE, "conversations": SAID, "video": "a.mp4"}, {}, "its key 'video' is not supported"),
        ({"images": [IMAGE], "texts": [{"user": None, "assistant": "So."}]}, {}, "turn 1 of texts has no 'user'"),
    ],
)
def test_unreadable_rows(tmp_path, row, options, reason):
    write(tmp_path / "a.parquet", {key: [value] for key, value in row.items()})
    (found,) = reasons(tmp_path / "a.parquet", **options)
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1], "b": ["x"]}, {}, r"name the column of the text with `text`\ncolumns:\n  a: int64\n  b: string"),
        ({"text": ["x"]}, {"image": "imag"}, "option 'image': there is no column 'imag'"),
        ({"text": ["x"], "image": [3]}, {}, r"column 'image' holds int64, not images"),
        ({"text": [decimal.Decimal("1.5")]}, {}, r"column 'text' holds decimal128\(2, 1\), not text"),
        ({"label": [3], "image": [RED.data]}, {}, "column 'label' holds int64, not text"),
        ({"text": [["a", "b"]]}, {}, "column 'text' holds list<.*string>, not text"),
        ({"question": ["a"], "answers": [[{"said": "b"}]]}, {}, "column 'answers' holds list<.*said.*, not text"),
        ({"photo": [RED.data], "text": ["a"]}, {}, "name the column of the images with `image`"),
        (
            {"URL": ["http://a/b.jpg"], "TEXT": ["a"]},
            {},
            "column 'URL' names images on the web.*`text: TEXT`",
        ),
        ({"image_url": ["http://a/b.jpg"], "caption": ["a"]}, {}, "column 'image_url' names images on the web"),
        ({"text": ["a"]}, {"min_ratings": {"relevance": 3}}, "relevance needs turns and relevance_ratings"),
        ({"text": ["a"]}, {"min_ratings": {"relevence": 3}}, "min_ratings"),
        ({"text": ["a"]}, {"split": "train"}, "option 'split' chooses files of a folder"),
        ({"text": pa.array([], pa.string())}, {}, "has no rows"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, columns, options, message):
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(ConfigError, match=message):
        examples(tmp_path / "a.parquet", **options)


def test_captions_without_their_images_are_learned_if_they_are_asked_for(tmp_path):
    write(tmp_path / "a.parquet", {"URL": ["http://a/b.jpg"], "TEXT": ["a"]})
    assert [e.turns for e in examples(tmp_path / "a.parquet", text="TEXT")] == [caption("a")]
    write(tmp_path / "b.parquet", {"url": ["http://a"], "text": ["a"]})  # a page of a crawl
    assert [e.turns for e in examples(tmp_path / "b.parquet")] == [caption("a")]


def test_a_list_of_captions_gives_a_record_of_each(tmp_path):
    columns = {"image": [RED.data, BLUE.data, None, RED.data], "caption": [["a", "b"], ["c"], ["d"], []]}
    found = examples(write(tmp_path / "a.parquet", columns))
    places = [Place(str(tmp_path / "a.parquet"), line) for line in (1, 1, 2, 3, 4)]
    assert [e.place for e in found] == places
    assert [e.turns for e in found[:3]] == [caption(RED, "a"), caption(RED, "b"), caption(BLUE, "c")]
    assert [e.id for e in found[:3]] == ["a.parquet:1/1", "a.parquet:1/2", "a.parquet:2"]
    assert [e.reason for e in found[3:]] == ["it has no image", "it has no caption"]


@pytest.mark.parametrize(
    "columns",
    [
        {"answers": ["b", "c", "b"]},  # DocVQA, TextVQA
        {
            "answers": [
                {"answer": "c", "answer_id": 1},
                {"answer": "b", "answer_id": 2},
                {"answer": "b", "answer_id": 3},
            ]
        },
        {"answers": ["x"], "multiple_choice_answer": "b"},  # VQA v2
    ],
)
def test_questions_with_several_answers(tmp_path, columns):
    rows = {"question": ["a"], "image": [RED.data]} | {name: [value] for name, value in columns.items()}
    (record,) = examples(write(tmp_path / "a.parquet", rows))
    assert record.turns == said((RED, "a"), "b")


def test_dictionary_encoded_and_large_columns(tmp_path):
    columns = {
        "image": pa.array([RED.data, BLUE.data], pa.large_binary()),
        "text": pa.array(["a", "a"]).dictionary_encode(),
        "id": pa.array(["first", None]),
    }
    found = examples(write(tmp_path / "a.parquet", columns))
    assert found == [Record("first", caption(RED, "a")), Record("a.parquet:2", caption(BLUE, "a"))]


def test_invalid_utf8_spoils_only_its_row(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
    found = examples(write(tmp_path / "a.parquet", {"text": text}))
    assert [type(example) for example in found] == [Record, Unreadable, Record]
    assert "Invalid UTF8" in found[1].reason
    assert found[1].place == Place(str(tmp_path / "a.parquet"), 2)


# -------------------------------------------------------------------------------------------- ratings


def fine_vision(path, **ratings):
    texts = [[{"user": f"q{n}", "assistant": f"a{n}"} for n in range(3)]] * 2
    columns = {"images": [[IMAGE]] * 2, "texts": texts, "source": ["s"] * 2}
    return write(path, columns | {f"{name}_ratings": lists for name, lists in ratings.items()})


def test_turns_with_low_ratings_are_left_out_and_named(tmp_path):
    path = fine_vision(tmp_path / "a.parquet", relevance=[[5, 2, None], None], formatting=[[1, 5, 2], [5, 5, 1]])
    found = list(read("parquet", {"path": str(path), "min_ratings": {"relevance": 3, "formatting": 2}}))
    assert [example.key for example in found if isinstance(example, Omitted)] == [
        "turns with formatting below 2",
        "turns with relevance below 3",
        "turns with formatting below 2",
    ]
    kept = [record.turns for record in found if isinstance(record, Record)]
    assert kept == [said((RED, "\nq2"), "a2"), (*said((RED, "\nq0"), "a0"), *said(("q1",), "a1"))]


def test_a_row_without_a_good_turn_is_left_out(tmp_path):
    path = fine_vision(tmp_path / "a.parquet", relevance=[[1, 2, 2], [3, 3]])
    assert reasons(path, min_ratings={"relevance": 3}) == [
        "no turn is left: relevance below 3",
        "it has 2 relevance_ratings for 3 turns",
    ]


# ------------------------------------------------------------------------------------- parts, batches


@pytest.mark.parametrize("group_rows", [1, 3, 10, 25])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_parts_hold_the_rows_in_order(tmp_path, monkeypatch, group_rows, size):
    monkeypatch.setattr(module, "_BATCH_ROWS", 2)
    path = write(tmp_path / "a.parquet", {"text": [str(n) for n in range(25)]}, row_group_size=group_rows)
    opened = open_reader("parquet", {"path": str(path)})
    parts = list(opened.parts(size, None))
    found = [[e for e in opened.read(part) if isinstance(e, Record)] for part in parts]
    assert [record.turns[0].content[0] for part in found for record in part] == [str(n) for n in range(25)]
    assert [record.place.line for part in found for record in part] == list(range(1, 26))
    assert len({part.name for part in parts}) == len(parts) <= 8 * -(-25 // group_rows)
    assert parts[-1].name.endswith("-25")
    assert max(map(len, found)) <= max(size, -(-group_rows // 8))


def test_a_limit_opens_no_file_that_it_does_not_need(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.parquet", {"text": list("abcd")})
    (tmp_path / "2.parquet").write_bytes(b"")
    opened = open_reader("parquet", {"path": str(tmp_path / "*.parquet")})
    assert [part.name for part in opened.parts(9, 5)] == ["0.parquet:1-4", "1.parquet:1-4"]


def test_batches_are_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_BYTES", 3 * len(RED.data))
    path = write(tmp_path / "a.parquet", {"image": [RED.data] * 20, "text": ["a"] * 20}, use_dictionary=False)
    table = module.open_table(str(path))
    assert max(batch.num_rows for batch in table.batches(0, 1, ["image"])) <= 3
    assert len(examples(path)) == 20


def test_several_files_of_the_same_name(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0000.parquet", {"text": [folder]})
    assert [e.turns for e in examples(tmp_path / "*/0000.parquet")] == [caption("a"), caption("b")]
    parts = list(open_reader("parquet", {"path": str(tmp_path / "{a,b}" / "0000.parquet")}).parts(9, None))
    assert len({part.name for part in parts}) == 2


# --------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-9], "it is cut short, or its footer is damaged"),
        (lambda data: data[: len(data) // 2], "it is cut short, or its footer is damaged"),
        (lambda data: b"", "it is empty"),
        (lambda data: b'{"text": "a"}\n', "it is neither a parquet nor an Arrow file"),
        (lambda data: b"PK\x03\x04" + data, "it is a zip file"),
        (lambda data: data[:-60] + b"\xff" * 40 + data[-20:], "the file cannot be read"),
    ],
)
def test_one_damaged_file_does_not_stop_the_others(tmp_path, change, reason):
    good = write(tmp_path / "b.parquet", {"text": ["good"]})
    (tmp_path / "a.parquet").write_bytes(change(good.read_bytes()))
    bad, record = examples(tmp_path / "*.parquet")
    assert (bad.id, record.turns) == ("a.parquet", caption("good"))
    assert reason in bad.reason


def test_a_damaged_page_is_told_with_the_rows_that_are_lost(tmp_path):
    texts = [f"text number {n}" for n in range(300)]
    path = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=100, compression="zstd")
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(1).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start + 20 : start + 60] = b"\xff" * 40
    path.write_bytes(data)
    opened = open_reader("parquet", {"path": str(path)})
    found = [example for part in opened.parts(100, None) for example in opened.read(part)]
    lost = [example for example in found if isinstance(example, Unreadable)]
    assert len(lost) == 1
    assert lost[0].reason.startswith("rows 101 to 200 cannot be read")
    assert len(found) == 201


# ------------------------------------------------------------------------------------ saved by datasets


@pytest.fixture
def saved():
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})

    def make(*texts):
        return datasets.Dataset.from_dict(
            {"image": [{"bytes": RED.data, "path": None} for _ in texts], "text": list(texts)}, features=features
        )

    return make


def test_save_to_disk(tmp_path, saved):
    table = saved(*[str(number) for number in range(7)])
    table.save_to_disk(tmp_path / "one", num_shards=2)
    found = examples(tmp_path / "one")
    assert [record.turns for record in found] == [caption(RED, str(number)) for number in range(7)]
    table.select([5, 2]).save_to_disk(tmp_path / "chosen")
    assert [record.turns[0].content[1] for record in examples(tmp_path / "chosen")] == ["5", "2"]
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(ConfigError, match=r"arrow does not exist, but .*state\.json lists it"):
        examples(tmp_path / "one")


def test_splits_of_save_to_disk(tmp_path, saved):
    datasets.DatasetDict({"train": saved("a"), "test": saved("b")}).save_to_disk(tmp_path / "both")
    assert [record.turns[0].content[1] for record in examples(tmp_path / "both", split="test")] == ["b"]
    with pytest.raises(ConfigError, match="holds the splits train, test; choose one with `split`"):
        examples(tmp_path / "both")
    with pytest.raises(ConfigError, match="has no split 'dev'; it has train, test"):
        examples(tmp_path / "both", split="dev")


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], None, [0, 1]),
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001-a7.parquet"], "test", [1]),
        (["default/train/0000.parquet", "default/validation/0000.parquet"], "train", [0]),
        (["ai2d/train-00000-of-00001.parquet", "vqa/train-00000-of-00001.parquet"], "train", [0, 1]),
        (["10.parquet", "9.parquet", ".cache/8.parquet"], None, [1, 0]),
    ],
)
def test_folders_as_they_are_downloaded(tmp_path, saved, names, split, chosen):
    for number, name in enumerate(names):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        saved(str(number)).to_parquet(tmp_path / "hub" / name)
    options = {} if split is None else {"split": split}
    found = examples(tmp_path / "hub", **options)
    assert [record.turns[0].content[1] for record in found] == [str(number) for number in chosen]


def test_a_downloaded_folder_below_a_hidden_one(tmp_path, monkeypatch):
    """Hugging Face's cache is ~/.cache/huggingface; hidden folders below the source's own are left out."""
    folder = tmp_path / ".cache/hub/snapshots/a"
    for name in ("data/train-00000-of-00001.parquet", ".cache/old.parquet"):
        (folder / name).parent.mkdir(parents=True)
        write(folder / name, {"text": [name]})
    expected = [caption("data/train-00000-of-00001.parquet")]
    assert [e.turns for e in examples(folder)] == expected
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert [e.turns for e in examples("../.cache/hub/snapshots/a")] == expected


def test_a_folder_with_several_splits_needs_a_choice(tmp_path, saved):
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        saved("a").to_parquet(tmp_path / name)
    with pytest.raises(ConfigError, match="holds the splits test, train; choose one with `split`"):
        examples(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds neither parquet files nor a dataset of `save_to_disk`"):
        examples(tmp_path / "empty")


def test_arrow_files_with_random_access(tmp_path):
    batch = pa.record_batch({"text": ["a", "b", "c"]})
    with pa.ipc.new_file(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    assert [record.turns[0].content[0] for record in examples(tmp_path / "a.arrow")] == list("abcabc")


def test_a_cut_arrow_file_gives_the_rows_before_the_damage(tmp_path):
    batch = pa.record_batch({"text": ["a", "b", "c"]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", batch.schema) as writer:
        for _ in range(3):
            writer.write_batch(batch)
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data[: len(data) - 100])
    *records, last = examples(tmp_path / "a.arrow")
    assert [record.turns[0].content[0] for record in records] == list("abcabc")
    assert last.reason.startswith("what follows row 6 cannot be read")


def test_an_arrow_file_that_points_outside_its_memory(tmp_path):
    batch = pa.record_batch({"text": ["aaaa", "bbbb", "cccc"]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    offsets = b"\0\0\0\0\x04\0\0\0\x08\0\0\0"
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data.replace(offsets, b"\0\0\0\0\x04\0\0\0\xff\xff\0\x7f"))
    assert [type(example) for example in examples(tmp_path / "a.arrow")] == [Record, Unreadable, Unreadable]


def test_an_arrow_file_whose_column_names_are_damaged(tmp_path):
    batch = pa.record_batch({"text": ["a"], "another": ["b"]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    data = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(data.replace(b"another", b"an\xff\xffher"))
    (example,) = examples(tmp_path / "a.arrow")
    assert example.reason.startswith("the file cannot be read: 'utf-8' codec can't decode")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_remote_tables(tmp_path, saved, kind):
    if kind == "parquet":
        saved("a", "b").to_parquet(tmp_path / "a.parquet")
    else:
        saved("a", "b").save_to_disk(tmp_path / "saved")
    (file,) = tmp_path.rglob(f"*.{kind}")
    fsspec.filesystem("memory").pipe(f"/tables/a.{kind}", file.read_bytes())
    found = examples(f"memory://tables/*.{kind}")
    assert [record.turns for record in found] == [caption(RED, "a"), caption(RED, "b")]


def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="is not a regular file"):
        examples(tmp_path / "a.parquet")


def test_ranges_name_files_that_do_not_exist(tmp_path):
    write(tmp_path / "0.parquet", {"text": ["a"]})
    with pytest.raises(ConfigError, match=r"1\.parquet does not exist"):
        examples(Path(tmp_path) / "{0..1}.parquet")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_damaged_compression(tmp_path, compress):
    data = compress(random.Random(0).randbytes(3000))
    (tmp_path / "a.parquet").write_bytes(data[:60] + b"\xff" * 60 + data[120:])
    (example,) = read("text", {"path": str(tmp_path / "a.parquet")})
    assert isinstance(example, Unreadable)
    with pytest.raises(ConfigError, match="cannot read"):
        list(read("auto", {"path": str(tmp_path / "a.parquet")}))
    write(tmp_path / "b.parquet", {"image": [RED.data], "text": ["a"]})
    damaged, sound = read("parquet", {"path": [str(tmp_path / f"{name}.parquet") for name in "ab"]})
    assert (type(damaged), sound.turns) == (Unreadable, caption(RED, "a"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_dict.json", '{"splits": [{"a": 1}]}', "'splits' in .* is not a list of names"),
        ("dataset_dict.json", '{"splits": 3}', "'splits' in .* is not a list of names"),
        ("dataset_dict.json", "[" * 100_000, "cannot read .*dataset_dict.json"),
        ("train/state.json", '{"_data_files": [null]}', "lists no files"),
        ("train/state.json", '{"_data_files": [{"filename": 3}]}', "lists no files"),
        ("train/state.json", '{"_data_files": []}', "lists no files"),
        ("train/state.json", "{}", "lists no files"),
        ("train/state.json", None, "named pipe"),
    ],
)
def test_saved_datasets_whose_lists_are_damaged(tmp_path, file, content, message):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(str(tmp_path))
    (tmp_path / file).unlink()
    if content is None:
        os.mkfifo(tmp_path / file)
    else:
        (tmp_path / file).write_text(content)
    for reader in ("parquet", "auto"):
        with pytest.raises(ConfigError, match=message):
            list(read(reader, {"path": str(tmp_path)}))


@pytest.mark.parametrize("names", [["cat", 2.5], "[" * 100_000])
def test_notes_of_datasets_that_are_damaged(tmp_path, names):
    noted = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}})
    noted = noted.replace(json.dumps(names), names) if isinstance(names, str) else noted
    table = pa.table({"label": [1], "image": [RED.data]}).replace_schema_metadata({"huggingface": noted})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="column 'label' holds int64, not text"):
        examples(tmp_path / "a.parquet")
