"""TensorFlow Datasets, written by TFDS's own builder."""

import io
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import open_reader, read
from solo.data.record import Image, Place, Turn
from tests.data.readers.pictures import BLUE, RED, read_source

tfds = pytest.importorskip("tensorflow_datasets")
features = tfds.features


def grey16() -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(np.full((2, 3), 40000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


FEATURES = {
    "image": features.Image(shape=(None, None, 3)),
    "images": features.Sequence(features.Image(shape=(None, None, 3))),
    "grey16": features.Image(shape=(None, None, 1), dtype=np.uint16),
    "pixels": features.Tensor(shape=(2, 3, 1), dtype=np.uint8),
    "pixels16": features.Tensor(shape=(2, 3), dtype=np.uint16),
    "floats": features.Tensor(shape=(2, 3, 3), dtype=np.float32),
    "clip": features.Tensor(shape=(2, 2, 3, 3), dtype=np.uint8),
    "label": features.ClassLabel(names=["cat", "dog"]),
    "digit": features.ClassLabel(num_classes=3),
    "number": features.Scalar(dtype=np.int64),
    "score": features.Scalar(dtype=np.float32),
    "caption": features.Text(),
    "texts": features.Sequence(features.Text()),
    "captions": features.Sequence({"text": features.Text(), "id": np.int64}),
    "nested": {"text": features.Text()},
}


def example(number: int, label: int) -> dict[str, object]:
    return {
        "image": (RED, BLUE)[number % 2].data,
        "images": [RED.data, BLUE.data][: number % 3],
        "grey16": grey16(),
        "pixels": np.full((2, 3, 1), 7 * number, np.uint8),
        "pixels16": np.full((2, 3), 257 * number, np.uint16),
        "floats": np.full((2, 3, 3), 0.5 if number else np.nan, np.float32),
        "clip": np.stack([np.full((2, 3, 3), value, np.uint8) for value in (1, 2)]),
        "label": label,
        "digit": number % 3,
        "number": number,
        "score": 0.7,
        "caption": f"number {number}" if number != 1 else b"\xff",
        "texts": [f"{number}a", f"{number}b"],
        "captions": [{"text": f"{number}c", "id": 1}],
        "nested": {"text": f"{number}n"},
    }


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(FEATURES))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5, 1), "test": self._generate_examples(2, -1)}

    def _generate_examples(self, count, label):
        for number in range(count):
            yield number, example(number, label if number else min(label, 0))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return folder


@pytest.fixture
def tiny(data_dir):
    return {"name": "tiny", "split": "train", "data_dir": data_dir}


def values(data_dir, split, feature):
    """The values of a feature in the order of TFDS itself."""
    return [found[feature] for found in tfds.builder("tiny", data_dir=data_dir).as_data_source(split)]


def test_captions_in_the_order_of_tfds(data_dir, tiny):
    numbers = values(data_dir, "train", "number")
    records, unreadable, _ = read_source("tfds", **tiny, text="caption")
    assert records == {f"tiny/train/{i}": ((RED, BLUE)[n % 2], f"number {n}") for i, n in enumerate(numbers) if n != 1}
    assert unreadable == {f"tiny/train/{numbers.index(1)}": "its text is not UTF-8: invalid start byte at byte 0"}
    first = next(read("tfds", tiny))
    assert first.turns == (Turn("text", (RED if numbers[0] % 2 == 0 else BLUE, "dog" if numbers[0] else "cat")),)
    assert first.place == Place(f"{data_dir}/tiny/1.0.0/tiny-train.array_record-00000-of-00002", 1)


def test_a_prepared_folder_and_a_slice(data_dir):
    path = f"{data_dir}/tiny/1.0.0"
    whole, _, _ = read_source("tfds", path=path, split="train", text="nested/text")
    some, _, _ = read_source("tfds", path=path, split="train[1:4]", text="nested/text")
    assert list(some.values()) == list(whole.values())[1:4]


def test_parts_are_ranges_of_shards(data_dir, tiny):
    source = open_reader("tfds", tiny | {"text": "nested/text"})
    parts = list(source.parts(2, None))
    assert [len(list(source.read(part))) for part in parts] == [
        stop - start for start, stop, _ in (p.span for p in parts)
    ]
    assert sum(stop - start for start, stop, _ in (part.span for part in parts)) == 5
    assert all(len(part.files) == 1 for part in parts)
    places = [example.place for part in parts for example in source.read(part)]
    assert len({(place.file, place.line) for place in places}) == 5
    assert {place.line for place in places if place.file.endswith("00000-of-00002")} == set(range(1, 3))


@pytest.mark.parametrize(
    ("options", "pixels"),
    [
        ({"image": "pixels"}, lambda n: 7 * n),
        ({"image": "pixels16"}, lambda n: n),
        ({"image": "floats", "value_range": [0.0, 1.0]}, lambda n: 128),
    ],
)
def test_pixels(data_dir, tiny, options, pixels):
    numbers = values(data_dir, "train", "number")
    records, unreadable, _ = read_source("tfds", **tiny | options)
    for name, (image, _) in records.items():
        number = numbers[int(name.rsplit("/", 1)[-1])]
        assert np.array_equal(np.asarray(image.decode()), np.full((2, 3, 3), pixels(number)))
    bad = {f"tiny/train/{numbers.index(0)}": "its pixels hold NaN or infinity"} if "value_range" in options else {}
    assert unreadable == bad
    assert len(records) + len(bad) == 5


def test_files_of_16_bits_stay_as_they_are(tiny):
    assert all(image == Image(grey16()) for image, _ in read_source("tfds", **tiny, image="grey16")[0].values())


def test_lists_of_images_and_of_texts(data_dir, tiny):
    numbers = values(data_dir, "train", "number")
    records, unreadable, _ = read_source("tfds", **tiny, image="images", text="texts", captions="all")
    expected = {n: (*[RED, BLUE][: n % 3], f"{n}a\n{n}b") for n in numbers if n % 3}
    assert {numbers[int(name.rsplit("/", 1)[-1])]: content for name, content in records.items()} == expected
    assert set(unreadable.values()) == {"it has no image"}
    records, _, _ = read_source("tfds", **tiny, text="texts")
    assert sorted(content[1] for content in records.values()) == sorted(f"{n}{x}" for n in range(5) for x in "ab")
    records, _, _ = read_source("tfds", **tiny, text="captions/text")
    assert sorted(content[1] for content in records.values()) == [f"{n}c" for n in range(5)]
    records, _, _ = read_source("tfds", **tiny, image="clip")
    assert {tuple(int(np.asarray(i.decode()).max()) for i in content[:2]) for content in records.values()} == {(1, 2)}


def test_labels_without_a_name(data_dir, tiny):
    records, unreadable, _ = read_source("tfds", name="tiny", split="test", data_dir=data_dir)
    assert not records
    assert set(unreadable.values()) == {"it has no label (-1), as in splits without labels"}
    records, unreadable, _ = read_source("tfds", **tiny, text="digit", names=["zero", "one"])
    assert {content[1] for content in records.values()} == {"zero", "one"}
    assert set(unreadable.values()) == {"label 2 has no name; there are 2 classes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tinny"}, "cannot open tinny"),
        ({"path": "/nowhere"}, "set either name (with data_dir) or path"),
        ({"split": "tran"}, "cannot open tiny, split tran"),
        ({"split": None}, "tiny has splits ['test', 'train']; name one with option split"),
        ({"text": "captio"}, "option 'text': tiny has no feature 'captio'; did you mean 'caption'?"),
        ({"text": "captions/txt"}, "has no feature 'captions/txt'; did you mean 'text'?"),
        ({"text": "captions"}, "feature 'captions' holds several features; name one: ['captions/id', 'captions/text']"),
        ({"text": "score"}, "feature 'score' holds float32 values, neither texts nor labels with names"),
        ({"text": "digit"}, "feature 'digit' is a label whose 3 classes have no names; set option names"),
        ({"text": "image"}, "feature 'image' is a list of lists"),
        ({"image": "caption"}, "feature 'caption' is a Text, not an image"),
        ({"image": "label"}, "feature 'label' is a ClassLabel, not an image"),
        ({"image": "floats"}, "feature 'floats' holds float32 values, whose range is unknown; set option value_range"),
        ({"image": "pixels", "value_range": [1.0, 1.0]}, "value_range must increase, not [1.0, 1.0]"),
    ],
)
def test_refused(tiny, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        list(read("tfds", tiny | change))


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "byte"])
def test_a_damaged_shard_costs_its_own_examples(tmp_path, data_dir, damage):
    shutil.copytree(data_dir, tmp_path / "copy")
    shard = tmp_path / "copy/tiny/1.0.0/tiny-train.array_record-00000-of-00002"
    data = shard.read_bytes()
    damaged = {"cut": data[: len(data) // 2], "empty": b"", "noise": b"x" * len(data)}
    shard.write_bytes(damaged.get(damage, data[:200] + b"\0" * 50 + data[250:]))
    options = {"name": "tiny", "split": "train", "data_dir": str(tmp_path / "copy"), "text": "nested/text"}
    records, unreadable, _ = read_source("tfds", **options)
    assert len(records) + len(unreadable) == 5
    assert len(records) >= 3
    assert all("the shard is damaged" in reason for reason in unreadable.values())
    assert unreadable


def test_a_missing_shard_and_another_file_format(tmp_path, data_dir):
    shutil.copytree(data_dir, tmp_path / "copy")
    (tmp_path / "copy/tiny/1.0.0/tiny-train.array_record-00001-of-00002").unlink()
    options = {"name": "tiny", "split": "train", "data_dir": str(tmp_path / "copy")}
    with pytest.raises(ConfigError, match=r"tiny-train\.array_record-00001-of-00002 does not exist"):
        list(read("tfds", options))
    info = tmp_path / "copy/tiny/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ConfigError, match=r"prepared as tfrecord, .*convert_format"):
        list(read("tfds", options))


def test_a_named_pipe_in_place_of_a_file(data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/tiny/1.0.0", tmp_path / "copy")
    (tmp_path / "copy/features.json").unlink()
    os.mkfifo(tmp_path / "copy/features.json")
    with pytest.raises(ConfigError, match=r"features\.json: it is a named pipe"):
        list(read("tfds", {"path": str(tmp_path / "copy"), "split": "train"}))
