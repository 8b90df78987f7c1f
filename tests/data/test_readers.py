import json
import random
import re
import time
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import Unreadable, read, reader, scenes
from solo.data.readers.digits import WORDS
from solo.data.readers.topics import documents
from solo.data.record import Image, Record, Turn, encode_png


def records(name: str, limit: int | None = None, /, **options) -> list[Record]:
    found = list(read(name, options, limit))
    assert all(isinstance(example, Record) for example in found)
    return found


# ------------------------------------------------------------------------------------------ registry


@pytest.mark.parametrize(
    ("name", "options", "limit", "message"),
    [
        ("scens", {}, 1, r"no reader 'scens'; did you mean 'scenes'\?"),
        ("zzz", {}, 1, r"no reader 'zzz'; readers: \['digits', "),
        ("scenes", {}, None, r"'scenes' never ends: set `limit`"),
        ("scenes", {"min_sid": 3}, 1, r"'scenes': unknown option 'min_sid'; did you mean 'min_side'\?"),
        ("topics", {"zzz": 3}, 1, r"unknown option 'zzz'; options: \['split', "),
        ("scenes", {"min_side": "32"}, 1, r"option 'min_side': .*integer; found \"32\""),
        ("digits", {"split": "test"}, 1, r"option 'split': .*'train' or 'held_out'"),
        ("digits", {"sizes": [24, 2.5]}, 1, r"option 'sizes.1': .*integer"),
        ("llava", {}, None, r"option 'path' is missing"),
    ],
)
def test_faults_are_found_before_reading(name, options, limit, message):
    with pytest.raises(ConfigError, match=message):
        read(name, options, limit)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scenes", {"min_side": 60, "max_side": 64}, "max_side 64 is not at least 1.25 times min_side 60"),
        ("scenes", {"max_shapes": 9}, "max_shapes 9 is not within 1 to 6"),
        ("lines", {"min_characters": 9, "max_characters": 5}, "found 9 and 5"),
        ("folder", {"path": "/nowhere"}, "/nowhere is not a folder"),
        ("folder", {"path": "/", "template": "it"}, "lacks {name}"),
        ("llava", {"path": "/nowhere.jsonl"}, "cannot read /nowhere.jsonl"),
    ],
)
def test_faults_found_on_reading(name, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        next(read(name, options, 1))


def test_two_readers_cannot_share_a_name():
    with pytest.raises(ValueError, match="two readers named 'digits'"):
        reader("digits")(lambda: iter(()))


# -------------------------------------------------------------------------------------------- digits


def test_digits():
    held_out = records("digits", split="held_out")
    train = records("digits", copies=2, sizes=[16, 24])
    assert len(held_out) == 359
    assert len(train) == 2 * (1797 - 359)
    assert {r.id.split("/")[1] for r in held_out}.isdisjoint(r.id.split("/")[1] for r in train)
    assert len({r.id for r in train}) == len(train)
    assert {r.images()[0].size() for r in train} == {(16, 16), (24, 24)}
    assert {r.images()[0].size() for r in held_out} == {(32, 32)}
    assert {r.turns[0].content[1] for r in held_out} == set(WORDS)
    assert held_out == records("digits", split="held_out", seed=5, copies=7)
    assert train[:50] == records("digits", 50, copies=2, sizes=[16, 24])
    assert train[0] != records("digits", 1, copies=2, sizes=[16, 24], seed=1)[0]


def test_a_held_out_digit_is_the_original_enlarged():
    from sklearn.datasets import load_digits

    found = load_digits()
    for record in records("digits", 20, split="held_out", form="question"):
        number = int(record.id.split("/")[1])
        user, assistant = record.turns
        pixels = np.asarray(record.images()[0].decode())[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(pixels.ravel(), found.images[number].ravel())[0, 1] > 0.95
        assert user.content[1] == "Which digit is this?"
        assert assistant == Turn("assistant", (WORDS[found.target[number]],))


# -------------------------------------------------------------------------------------------- scenes


def test_scenes_are_a_function_of_seed_split_and_place():
    assert records("scenes", 30) == records("scenes", 40)[:30]
    assert records("scenes", 5) != records("scenes", 5, seed=1)
    train, held_out = records("scenes", 300), records("scenes", 300, split="held_out")
    assert not {r.images()[0] for r in train} & {r.images()[0] for r in held_out}
    forms = Counter(r.turns[0].role for r in train)
    assert min(forms["text"], forms["user"]) > 110


def test_scene_sizes():
    sizes = [r.images()[0].size() for r in records("scenes", 300, min_side=24, max_side=50)]
    assert min(map(min, sizes)) == 24
    assert max(map(max, sizes)) == 50
    assert all(max(size) >= 1.25 * min(size) for size in sizes)
    assert len(set(sizes)) > 100
    assert 100 < sum(width > height for width, height in sizes) < 200


def seen(image: Image) -> list[tuple[str, str]]:
    """Shapes along the longer side, recognised from the pixels: colour by distance, kind by area."""
    pixels = np.asarray(image.decode()).astype(int)
    if pixels.shape[0] > pixels.shape[1]:
        pixels = pixels.transpose(1, 0, 2)
    colours = np.array(list(scenes.COLOURS.values()))
    distance = np.abs(pixels[:, :, None] - colours).sum(-1)
    nearest = np.where(distance.min(-1) <= 36, distance.argmin(-1), -1)
    occupied = np.flatnonzero((nearest >= 0).any(0))
    found = []
    for columns in np.split(occupied, np.flatnonzero(np.diff(occupied) > 1) + 1):
        part = nearest[:, columns]
        (colour,) = set(part[part >= 0].tolist())
        shape = part[(part >= 0).any(1)]
        full = (shape >= 0).mean()
        kind = "square" if full > 0.95 else "circle" if full > 0.65 else "triangle"
        found.append((list(scenes.COLOURS)[colour], kind))
    return found


def test_the_pixels_show_what_the_caption_says():
    for record in records("scenes", 100, form="caption", min_side=60, max_side=120):
        image, caption = record.turns[0].content
        relation = " left of " if image.size()[0] > image.size()[1] else " above "
        said = [tuple(shape.removeprefix("a ").split()) for shape in caption.split(relation)]
        assert seen(image) == said


def answers(question: str, scene: scenes.Scene) -> list[str]:
    """Every answer that is true, found by looking at the scene."""
    shapes = scene.shapes
    if found := re.fullmatch(r"What colour is the (\w+)\?", question):
        return [s.colour for s in shapes if s.kind == found[1]]
    if found := re.fullmatch(r"What shape is the (\w+) one\?", question):
        return [s.kind for s in shapes if s.colour == found[1]]
    if question == "How many shapes are there?":
        return [scenes.NUMBERS[len(shapes)]]
    if found := re.fullmatch(r"How many (\w+?)(s| shapes) are there\?", question):
        return [scenes.NUMBERS[sum(found[1] in (s.colour, s.kind) for s in shapes)]]
    found = re.fullmatch(r"What is (left of|right of|above|below) the (\w+ \w+)\?", question)
    place = [str(s) for s in shapes].index(found[2])
    assert scene.wide == (found[1] in ("left of", "right of"))
    return [str(s) for s in (shapes[:place] if found[1] in ("left of", "above") else shapes[place + 1 :])]


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_every_question_has_one_answer(most):
    draw = random.Random(0)
    for _ in range(1500):
        question, answer, scene = scenes.ask(draw, draw.random() < 0.5, most)
        assert answers(question, scene) == [answer]
        assert 1 <= len(scene.shapes) <= most
        assert len(set(scene.shapes)) == len(scene.shapes)


def test_guessing_without_the_image_does_not_pay():
    given = defaultdict(Counter)
    draw = random.Random(0)
    for _ in range(10_000):
        question, answer, _ = scenes.ask(draw, draw.random() < 0.5, most=3)
        given[question][answer] += 1
    # Only questions asked often say something about guessing.
    often = [found for found in given.values() if found.total() >= 50]
    assert sum(found.total() for found in often) > 7500
    assert max(max(found.values()) / found.total() for found in often) < 0.5
    assert sum(max(found.values()) for found in often) / sum(found.total() for found in often) < 0.35


def test_scenes_are_fast():
    list(read("scenes", {}, 10))
    started = time.process_time()
    list(read("scenes", {}, 300))
    assert (time.process_time() - started) / 300 < 1e-3


# ------------------------------------------------------------------------------------ lines and topics


def test_lines():
    found = records("lines", 300, min_characters=3, max_characters=12)
    texts = [r.turns[1].content[0] for r in found]
    assert {len(text) for text in texts} == set(range(3, 13))
    assert all(re.fullmatch(r"[a-z]{2,8}( [a-z]{2,8})*", text) for text in texts)
    assert len(set(texts)) > 250
    for record, text in zip(found, texts, strict=True):
        width, height = record.images()[0].size()
        assert 6 * len(text) + 4 <= width <= 6 * len(text) + 12
        assert 15 <= height <= 23
        pixels = np.asarray(record.images()[0].decode())
        assert pixels.min() <= 60
        assert pixels.max() >= 220
    assert found[:9] == records("lines", 9, min_characters=3, max_characters=12)
    assert records("lines", 1)[0].turns != records("lines", 1, split="held_out")[0].turns
    assert records("lines", 1)[0].turns != records("lines", 1, seed=1)[0].turns
    (turn,) = records("lines", 1, form="caption")[0].turns
    assert turn.role == "text"


def test_different_lines_look_different():
    drawn = {r.images()[0] for r in records("lines", 100, min_characters=8, max_characters=8)}
    assert len(drawn) == 100


def test_topics():
    train, held_out = records("topics"), records("topics", split="held_out")
    assert len(train) == pytest.approx(9 * len(held_out), abs=9)
    assert not {r.id for r in train} & {r.id for r in held_out}
    texts = [r.turns[0].content[0] for r in train + held_out]
    assert max(map(len, texts)) <= 1000
    assert all(text.strip() for text in texts)
    assert sum(map(len, texts)) > 200_000


@pytest.mark.parametrize("most", [3, 7, 12, 40, 1000])
def test_documents_lose_nothing(most):
    text = "one\n\ntwo three four\nfive six\n\nseven\n\n\n\neightnineteneleven\n\nx"
    found = list(documents(text, most))
    assert max(map(len, found)) <= most
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(found)


def test_documents_keep_paragraphs_together():
    assert list(documents("aa\n\nbb\n\ncccc\ncc\n\ndd", 6)) == ["aa\n\nbb", "cccc", "cc\n\ndd"]


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


def test_llava_lines_that_are_no_examples(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"id": "kite", "conversations": [{"from": "system", "value": "s"}, *said("a", "b")]}).encode()
    path.write_bytes(b"{oops\n" + good + b"\n[1]\n\xff\xfe\n" + good)
    found = list(read("llava", {"path": str(path)}))
    assert [example.id for example in found] == ["bad.jsonl:1", "kite", "bad.jsonl:3", "bad.jsonl:4", "kite"]
    assert [isinstance(example, Unreadable) for example in found] == [True, False, True, True, False]
    assert found[1].turns[0] == Turn("system", ("s",))
    assert "not list" in found[2].reason


def test_llava_file_that_is_no_list(tmp_path):
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
    """A dataset as TFDS writes it, without TensorFlow: two examples, as image, array, label and text."""
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
    captions = {r.turns[0] for r in records("tfds", **options, text="caption")}
    assert captions == {Turn("text", (RED, "number 0")), Turn("text", (BLUE, "number 1"))}
    labels = {r.turns[0].content[1]: r.images()[0] for r in records("tfds", **options)}
    assert labels == {"cat": RED, "dog": BLUE}
    arrays = {r.turns[0].content[1]: r.images()[0] for r in records("tfds", **options, image="array")}
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
