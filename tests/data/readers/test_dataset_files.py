"""Readers of dataset files: llava, folder and tfds."""

import json
import re
from itertools import islice

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import Unreadable, read
from solo.data.record import Record, Turn, encode_png
from tests.data.fakes import read_records

# --------------------------------------------------------------------------------------------- llava

RED, BLUE = (encode_png(PillowImage.new("RGB", (3, 2), colour)) for colour in ("red", "blue"))


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "red.png").write_bytes(RED.data)
    (tmp_path / "blue.png").write_bytes(BLUE.data)
    return tmp_path


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


READABLE = [
    ({"image": "red.png", "conversations": said("<image>\nWhy?", "So.")}, [(RED, "\nWhy?"), ("So.",)]),
    ({"image": "red.png", "conversations": said("Why?\n<image>", "So.")}, [("Why?\n", RED), ("So.",)]),
    ({"image": "red.png", "conversations": said("Why?", "So.")}, [(RED, "\nWhy?"), ("So.",)]),
    (
        {"image": ["red.png", "blue.png"], "conversations": said("Why?", "So.")},
        [(RED, "\n", BLUE, "\nWhy?"), ("So.",)],
    ),
    (
        {"image": ["red.png", "blue.png"], "conversations": said("<image>\na\n<image>\n", "b", "\nc\n", "d")},
        [(RED, "\na\n", BLUE, "\n"), ("b",), ("\nc\n",), ("d",)],
    ),
    (
        {"image": ["red.png", "blue.png"], "conversations": said("<image>", "b", "<image> c", "d")},
        [(RED,), ("b",), (BLUE, " c"), ("d",)],
    ),
    ({"conversations": said("Hi\n", "Ho")}, [("Hi\n",), ("Ho",)]),
    ({"image": None, "conversations": said("Hi", "Ho")}, [("Hi",), ("Ho",)]),
]
UNREADABLE = [
    ({"image": "red.png", "conversations": said("<image><image>", "a")}, "2 <image> in the text for 1 images"),
    ({"image": ["red.png", "blue.png"], "conversations": said("<image>", "a")}, "1 <image> in the text for 2 images"),
    ({"conversations": said("the tag <image>", "a")}, "1 <image> in the text for 0 images"),
    ({"image": "green.png", "conversations": said("<image>", "a")}, "No such file.*green.png"),
    ({"image": 3, "conversations": said("a", "b")}, "'image' must be a path or a list of paths"),
    ({"image": "red.png"}, "'conversations' must be a list of turns"),
    ({"conversations": ["a", "b"]}, "'conversations' must be a list of turns"),
    ({"conversations": [{"from": "robot", "value": "a"}]}, "'from' must be one of human, gpt, system, not 'robot'"),
    ({"conversations": [{"from": "gpt", "text": "a"}]}, "'value' must be a string, not None"),
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llava(pictures, suffix):
    examples = [{"id": i, **example} for i, (example, _) in enumerate(READABLE + UNREADABLE)]
    lines = [json.dumps(example) for example in examples]
    path = pictures / f"all{suffix}"
    path.write_text(f"[{','.join(lines)}]" if suffix == ".json" else "\n".join(lines) + "\n\n")
    found = list(read("llava", {"path": str(path), "images": str(pictures)}))
    assert [example.id for example in found] == [str(i) for i in range(len(examples))]
    for record, (_, expected) in zip(found, READABLE, strict=False):
        assert [turn.content for turn in record.turns] == expected
        assert [turn.role for turn in record.turns] == ["user", "assistant"] * (len(expected) // 2)
    for bad, (_, reason) in zip(found[len(READABLE) :], UNREADABLE, strict=True):
        assert isinstance(bad, Unreadable)
        assert re.search(reason, bad.reason)


def test_llava_trains_on_inputs_as_one_text(pictures):
    path = pictures / "a.jsonl"
    path.write_text(json.dumps({"image": "red.png", "conversations": said("<image>\n", "A kite.", "Where?", "Up.")}))
    (record,) = read("llava", {"path": str(path), "images": str(pictures), "train_on_inputs": True})
    assert record.turns == (Turn("text", (RED, "\n", "A kite.", "Where?", "Up.")),)


def test_llava_lines_that_are_not_examples(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"id": "kite", "conversations": [{"from": "system", "value": "s"}, *said("a", "b")]}).encode()
    path.write_bytes(b"{oops\n" + good + b"\n[1]\n\xff\xfe\n" + good)
    found = list(read("llava", {"path": str(path)}))
    assert [example.id for example in found] == ["bad.jsonl:1", "kite", "bad.jsonl:3", "bad.jsonl:4", "kite"]
    assert [isinstance(example, Unreadable) for example in found] == [True, False, True, True, False]
    assert found[1].turns[0] == Turn("system", ("s",))
    assert "not list" in found[2].reason


def test_llava_file_that_is_not_a_list(tmp_path):
    (tmp_path / "a.json").write_text('{"id": 1}')
    with pytest.raises(ConfigError, match=r"a\.json does not hold one JSON list.*\.jsonl"):
        list(read("llava", {"path": str(tmp_path / "a.json")}))


def test_llava_streams(pictures):
    path = pictures / "a.jsonl"
    path.write_text(json.dumps({"conversations": said("a", "b")}) + "\n{broken")
    assert [r.id for r in islice(read("llava", {"path": str(path)}), 1)] == ["a.jsonl:1"]


# -------------------------------------------------------------------------------------- folder, tfds


def test_folder(tmp_path):
    for name in ("tabby_cat/2.png", "tabby_cat/1.png", "tabby_cat/deep/3.png", "tabby_cat/.hidden", "a-dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(RED.data)
    (tmp_path / "README").write_text("hello")
    (tmp_path / "tabby_cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    found = list(read("folder", {"path": str(tmp_path), "template": "a photo of a {name}"}))
    assert [example.id for example in found] == [
        "README",
        "a-dog/1.png",
        "tabby_cat/1.png",
        "tabby_cat/2.png",
        "tabby_cat/deep/3.png",
        "tabby_cat/gone.png",
    ]
    assert [isinstance(example, Unreadable) for example in found] == [True, False, False, False, False, True]
    assert found[1].turns == (Turn("text", (RED, "a photo of a a dog")),)
    questions = [e for e in read("folder", {"path": str(tmp_path), "form": "question"}) if isinstance(e, Record)]
    assert questions[1].turns == (Turn("user", (RED, "What is in the image?")), Turn("assistant", ("tabby cat",)))


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory):
    """A dataset of two examples as TFDS writes it, without TensorFlow: image, array, label and text."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "array": tfds.features.Tensor(shape=(2, 3, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "caption": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, picture in enumerate((RED, BLUE)):
                array = np.full((2, 3, 1), 7 * i, np.uint8)
                yield i, {"image": picture.data, "array": array, "label": i, "caption": f"number {i}"}

    Tiny(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def test_tfds(tiny_tfds):
    options = {"name": "tiny", "split": "train", "data_dir": tiny_tfds}
    captions = {r.turns[0] for r in read_records("tfds", **options, text="caption")}
    assert captions == {Turn("text", (RED, "number 0")), Turn("text", (BLUE, "number 1"))}
    labels = {r.turns[0].content[1]: r.images()[0] for r in read_records("tfds", **options)}
    assert labels == {"cat": RED, "dog": BLUE}
    arrays = {r.turns[0].content[1]: r.images()[0] for r in read_records("tfds", **options, image="array")}
    assert np.array_equal(np.asarray(arrays["dog"].decode()), np.full((2, 3, 3), 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tinny"}, "cannot open tinny"),
        ({"split": "tran"}, "cannot open tiny, split tran"),
        ({"text": "captio"}, r"option 'text': tiny has no feature 'captio'; did you mean 'caption'\?"),
    ],
)
def test_tfds_faults(tiny_tfds, change, message):
    with pytest.raises(ConfigError, match=message):
        list(read("tfds", {"name": "tiny", "split": "train", "data_dir": tiny_tfds} | change))
