"""The interleaved reader, on documents of OBELICS, MMC4 and mOSCAR."""

import base64
import gzip
import json
import re
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import Ignored, Omitted, Unreadable, open_reader, read
from solo.data.record import Place, Record, Turn, encode_png

RED, BLUE = (encode_png(PillowImage.new("RGB", (3, 2), colour)) for colour in ("red", "blue"))
WEB = "http://x.org/red.png"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "red.png").write_bytes(RED.data)
    (tmp_path / "blue.png").write_bytes(BLUE.data)
    (tmp_path / "empty.png").touch()
    (tmp_path / "urls.json").write_text(json.dumps({WEB: "red.png"}))
    return tmp_path


def write(path, *documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def found(folder, document, **options):
    """Returns what is read of one document."""
    write(folder / "a.jsonl", document)
    options = {"urls": str(folder / options.pop("urls"))} | options if "urls" in options else options
    return list(read("interleaved", {"path": str(folder / "a.jsonl"), "images": str(folder)} | options))


def content(folder, document, **options):
    (record,) = (example for example in found(folder, document, **options) if not isinstance(example, Ignored))
    assert isinstance(record, Record), record
    (turn,) = record.turns
    assert turn == Turn("text", turn.content)
    return turn.content


def reason(folder, document, **options):
    (example,) = (example for example in found(folder, document, **options) if not isinstance(example, Ignored))
    assert isinstance(example, Unreadable)
    return example.reason


def mmc4(*images, texts=("One.", "Two.", "Three.")):
    keys = ("image_name", "matched_text_index", "matched_sim")
    infos = [dict(zip(keys, image, strict=False)) for image in images]
    return {"text_list": list(texts), "image_info": infos, "url": "u", "similarity_matrix": [[0.5]]}


def moscar(order, texts=("One.", "Two."), images=(WEB,)):
    return {
        "text": [{"text": text, "text_idx": f"#{number:06}"} for number, text in enumerate(texts)],
        "images": [{"img_idx": f"#{number:06}", "sha512": "00", "url": url} for number, url in enumerate(images)],
        "metadata": [{"node_order": order, "url": "u"}],
    }


# ------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("document", "options", "expected"),
    [
        ({"texts": ["One.", None, "Two."], "images": [None, "red.png", None]}, {}, ("One.", RED, "Two.")),
        ({"texts": [None, "One.", "Two."], "images": [WEB, None, None]}, {"urls": "urls.json"}, (RED, "One.\n\nTwo.")),
        ({"texts": ["One.", "Two."], "images": [None, None]}, {"separator": " | "}, ("One. | Two.",)),
        ({"texts": ["", None, "Two."], "images": [None, "red.png", None]}, {}, (RED, "Two.")),
        (mmc4(("red.png", 1, 0.3), ("blue.png", 1, 0.2)), {}, ("One.", RED, BLUE, "Two. Three.")),
        (mmc4(("red.png", 1)), {"position": "after"}, ("One. Two.", RED, "Three.")),
        (mmc4(("red.png", 0, 0.3), ("blue.png", 2, 0.2)), {"min_similarity": 0.25}, (RED, "One. Two. Three.")),
        (mmc4(("red.png", 2)), {"separator": "\n"}, ("One.\nTwo.", RED, "Three.")),
        (moscar("img_#000000|txt_#000000|txt_#000001"), {"urls": "urls.json"}, (RED, "One.\n\nTwo.")),
        (moscar("txt_#000001|img_#000000|txt_#000000"), {"urls": "urls.json"}, ("Two.", RED, "One.")),
        (moscar("txt_#000000", texts=("One.",), images=()), {}, ("One.",)),
    ],
)
def test_documents(folder, document, options, expected):
    assert content(folder, document, **options) == expected


def test_images_that_openflamingo_stores_in_the_document(folder):
    text = base64.b64encode(RED.data).decode()
    for encoded in (text, f"b'{text}'"):  # its first conversions wrote the bytes as Python shows them
        document = {"text_list": ["One."], "image_info": [{"image_base64": encoded, "matched_text_index": 0}]}
        assert content(folder, document) == (RED, "One.")


@pytest.mark.parametrize(
    ("document", "options", "expected"),
    [
        ({"texts": ["One."], "images": []}, {}, "1 texts and 0 images, which must be aligned"),
        ({"texts": ["One."], "images": ["red.png"]}, {}, "place 1 holds both a text and an image"),
        ({"texts": ["One.", None], "images": [None, None]}, {}, "image at place 2: it is missing"),
        ({"texts": ["One.", None], "images": [None, WEB]}, {}, f"{WEB} is a web address, and nothing is fetched"),
        ({"texts": ["One.", None], "images": [None, WEB]}, {"missing": "drop"}, f"{WEB} is a web address"),
        ({"texts": ["One.", None], "images": [None, WEB + "?"]}, {"urls": "urls.json"}, "urls.json does not list"),
        ({"texts": [None], "images": ["red.png"]}, {}, "it has no text"),
        ({"texts": [3], "images": [None]}, {}, "text 1 is not a text"),
        ({"texts": "One.", "images": [None]}, {}, "its texts is not a list"),
        (mmc4(("gone.png", 0)), {}, "image at place 1: the file does not exist: .*gone.png"),
        (mmc4(("empty.png", 0)), {}, "image at place 1: the file is empty: .*empty.png"),
        (mmc4(("red.png", 7)), {}, "image 1 of image_info has matched_text_index 7 for 3 texts"),
        (mmc4(("red.png",)), {}, "matched_text_index None"),
        (mmc4(("red.png", 0)), {"min_similarity": 0.2}, "image 1 of image_info has no matched_sim"),
        (mmc4(texts=("One.", None)), {}, "its text_list is not a list of texts"),
        (mmc4(texts=()), {}, "it has no text"),
        (moscar("txt_#000005"), {}, "'txt_#000005' of node_order is not in its texts"),
        (moscar("img_#000004|txt_#000000"), {}, "image at place 1: it is missing"),
        ({"text": [], "metadata": []}, {}, "its metadata has no node_order"),
        ({"text": [3], "metadata": [{"node_order": "txt_#0"}]}, {}, "its text is not a list of mappings"),
        ({"text": "One."}, {}, "it has the keys of neither OBELICS"),
        ([1], {}, "it is not a JSON object"),
    ],
)
def test_documents_that_are_refused(folder, document, options, expected):
    assert re.search(expected, reason(folder, document, **options))


def test_images_that_are_dropped_are_counted(folder):
    document = mmc4(("gone.png", 0, 0.9), ("red.png", 1, 0.9), ("empty.png", 1, 0.9), ("blue.png", 2, 0.1))
    document |= {"language": "en"}
    *others, record = found(folder, document, missing="drop", min_similarity=0.2)
    assert record.turns == (Turn("text", ("One.", RED, "Two. Three.")),)
    assert [example.key for example in others if not isinstance(example, Omitted)] == ["language"]
    assert Counter(example.key for example in others if isinstance(example, Omitted)) == {
        "images that cannot be read": 2,
        "images with matched_sim below 0.2": 1,
    }


def test_nodes_that_have_no_place_are_counted(folder):
    *omitted, record = found(folder, moscar("txt_#000001"))
    assert record.turns[0].content == ("Two.",)
    assert omitted == [Omitted("nodes that node_order does not list", Place(str(folder / "a.jsonl"), 1))] * 2


# ----------------------------------------------------------------------------------------------- files


def test_obelics_in_parquet_as_datasets_writes_it(folder):
    features = datasets.Features(
        {
            "images": datasets.Sequence(datasets.Image()),
            "texts": datasets.Sequence(datasets.Value("string")),
            "metadata": datasets.Value("string"),
            "general_metadata": datasets.Value("string"),
        }
    )
    rows = {
        "images": [[None, {"bytes": RED.data, "path": None}], [{"bytes": BLUE.data, "path": None}, None]],
        "texts": [["One.", None], [None, "Two."]],
        "metadata": ["[]", "[]"],
        "general_metadata": ["{}", "{}"],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "a.parquet")
    records = list(read("interleaved", {"path": str(folder / "a.parquet")}))
    assert [record.turns[0].content for record in records] == [("One.", RED), (BLUE, "Two.")]
    assert [record.place for record in records] == [Place(str(folder / "a.parquet"), row) for row in (1, 2)]


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
def test_parts_depend_on_the_file_of_addresses(folder, kind):
    document = {"texts": ["One.", None], "images": [None, WEB]}
    write(folder / "a.jsonl", document)
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        writer.write({"__key__": "a", "json": document})
    options = {"path": str(folder / f"a.{kind}"), "images": str(folder), "urls": str(folder / "urls.json")}
    opened = open_reader("interleaved", options)
    (part,) = opened.parts(9, None)
    assert part.files == (str(folder / f"a.{kind}"), str(folder / "urls.json"))
    (folder / "urls.json").write_text(json.dumps({WEB: "blue.png", "http://y": "red.png"}))
    (record,) = opened.read(part)
    assert record.turns[0].content == ("One.", BLUE)


def test_obelics_with_addresses_in_parquet(folder):
    pq.write_table(pa.table({"texts": [["One.", None]], "images": [[None, WEB]]}), folder / "a.parquet")
    pq.write_table(pa.table({"url": [WEB, "http://y"], "path": ["blue.png", None]}), folder / "urls.parquet")
    options = {"path": str(folder / "a.parquet"), "images": str(folder), "urls": str(folder / "urls.parquet")}
    (record,) = read("interleaved", options)
    assert record.turns[0].content == ("One.", BLUE)


def test_moscar_in_parquet_with_lists_in_either_form(folder):
    document = moscar("txt_#000001|txt_#000000", images=())
    columns = {key: [value] for key, value in document.items() if key != "images"}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    flat = {key: [{name: [item[name] for item in items] for name in items[0]}] for key, [items] in columns.items()}
    pq.write_table(pa.table(flat), folder / "b.parquet")
    records = list(read("interleaved", {"path": str(folder / "{a,b}.parquet")}))
    assert [record.turns[0].content for record in records] == [("Two.\n\nOne.",)] * 2


def test_mmc4_in_compressed_lines_and_parts(folder):
    lines = "".join(json.dumps(mmc4(("red.png", 0), texts=(f"{n}.",))) + "\n" for n in range(5))
    (folder / "docs_0.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "docs_1.jsonl").write_text(lines + "{broken\n")
    opened = open_reader("interleaved", {"path": str(folder / "docs_*"), "images": str(folder)})
    parts = list(opened.parts(2, None))
    examples = [example for part in parts for example in opened.read(part)]
    assert [example.id for example in examples[:5]] == [f"docs_0.jsonl.gz:{n}" for n in range(1, 6)]
    assert [record.turns[0].content for record in examples[5:10]] == [(RED, f"{n}.") for n in range(5)]
    assert isinstance(examples[10], Unreadable)
    assert len(examples) == 11
    assert len({part.name for part in parts}) == len(parts)


def test_mmc4_in_archives_of_openflamingo(folder):
    image = {"image_base64": base64.b64encode(RED.data).decode(), "matched_text_index": 0}
    with webdataset.TarWriter(str(folder / "0.tar")) as writer:
        writer.write({"__key__": "first", "json": {"text_list": ["One."], "image_info": [image]}})
        writer.write({"__key__": "second", "json": {"text_list": ["Two."], "image_info": []}})
        writer.write({"__key__": "third", "json": b"{oops"})
        writer.write({"__key__": "fourth", "txt": "Four."})
    data = (folder / "0.tar").read_bytes()
    (folder / "1.tar").write_bytes(gzip.compress(data))
    (folder / "2.tar").write_bytes(data[:5000])
    found = list(read("interleaved", {"path": str(folder / "{0..2}.tar")}))
    for examples in (found[:4], found[4:8]):
        assert [example.id for example in examples] == ["first", "second", "third", "fourth"]
        assert [record.turns[0].content for record in examples[:2]] == [(RED, "One."), ("Two.",)]
        assert "its json: it is not valid JSON" in examples[2].reason
        assert "it has no json; its members are txt" in examples[3].reason
    assert [example.place.line for example in found[:4]] == [1, 2, 3, 4]
    assert "cut short" in found[-1].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "a.parquet"}, r"neither OBELICS, MMC4 nor mOSCAR\ncolumns:\n  caption: string"),
        ({"path": "nowhere.jsonl"}, r"nowhere\.jsonl does not exist"),
        ({"path": "urls.json", "urls": "nowhere.json"}, r"option 'urls': .*nowhere\.json does not exist"),
        ({"path": "urls.json", "missing": "ignore"}, "'refuse' or 'drop'"),
    ],
)
def test_faults(folder, options, message):
    pq.write_table(pa.table({"caption": ["a"]}), folder / "a.parquet")
    paths = {key: str(folder / value) if key in ("path", "urls") else value for key, value in options.items()}
    with pytest.raises(ConfigError, match=message):
        list(read("interleaved", paths))


def test_a_damaged_table_does_not_stop_the_others(folder):
    pq.write_table(
        pa.table(
            {"texts": [["One."]], "images": [[None]]},
            pa.schema({"texts": pa.list_(pa.string()), "images": pa.list_(pa.string())}),
        ),
        folder / "b.parquet",
    )
    (folder / "a.parquet").write_bytes((folder / "b.parquet").read_bytes()[:-9])
    bad, record = read("interleaved", {"path": str(folder / "?.parquet")})
    assert "its footer is damaged" in bad.reason
    assert record.turns[0].content == ("One.",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": [{"text_idx": ["#0"], "text": "a"}]}, "each of its text must have a text_idx of its own"),
        (
            {"text": [{"text_idx": "#0", "text": "a"}, {"text_idx": "#0", "text": "b"}]},
            "must have a text_idx of its own",
        ),
        ({"images": [{"img_idx": {}, "path": "red.png"}]}, "each of its images must have a img_idx of its own"),
    ],
)
def test_nodes_without_a_name_of_their_own(folder, change, reason):
    document = {"text": [{"text_idx": "#0", "text": "a"}], "images": [], "metadata": [{"node_order": "txt_#0"}]}
    (example,) = found(folder, document | change)
    assert isinstance(example, Unreadable)
    assert reason in example.reason


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("u.jsonl", b'{"url": ["x"], "path": "a.png"}', "a url in .* is not a text"),
        ("u.parquet", {"url": ["x"]}, "there is no column 'path'"),
        ("u.json", None, "cannot read .*u.json"),
    ],
)
def test_addresses_that_cannot_be_read(folder, name, table, message):
    if isinstance(table, dict):
        pq.write_table(pa.table(table), folder / name)
    elif table is None:
        (folder / name).symlink_to(folder / "nowhere")
    else:
        (folder / name).write_bytes(table)
    (example,) = found(folder, {"texts": ["a", None], "images": [None, WEB]}, urls=name)
    assert isinstance(example, Unreadable)
    assert re.search(message, example.reason)
