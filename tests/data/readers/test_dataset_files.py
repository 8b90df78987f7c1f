"""Readers of dataset files: folder and tfds."""

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.data.readers import Unreadable, read
from solo.data.record import Record, Turn, encode_png
from tests.data.fakes import read_records

RED, BLUE = (encode_png(PillowImage.new("RGB", (3, 2), colour)) for colour in ("red", "blue"))


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
