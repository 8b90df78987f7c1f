import io

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from solo.data.record import Image, Record, Turn, blank, encode_png

RED = encode_png(PillowImage.new("RGB", (5, 3), (255, 0, 0)))


def test_record_bytes_round_trip():
    record = Record(
        "é/1",
        (
            Turn("system", ()),
            Turn("user", (RED, "what 漢?\n", Image(b""), "", RED)),
            Turn("assistant", ("a", "b"), learned=False),
            Turn("text", (Image(b"\0\1"),)),
        ),
    )
    assert Record.from_bytes(record.to_bytes()) == record
    assert record.images() == [RED, Image(b""), RED, Image(b"\0\1")]


def test_image_size_and_pixels():
    assert RED.size() == (5, 3)
    assert RED.decode().mode == "RGB"
    assert RED.decode().getpixel((4, 2)) == (255, 0, 0)
    for broken in (b"", b"text", RED.data[:20]):
        with pytest.raises(OSError, match=r".+"):
            Image(broken).size()


def test_blank_keeps_the_size_alone():
    found = np.asarray(blank(RED).decode())
    assert found.shape == (3, 5, 3)
    assert (found == 128).all()


def test_encode_png_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 3), np.uint8)
    encoded = encode_png(PillowImage.fromarray(pixels))
    assert PillowImage.open(io.BytesIO(encoded.data)).format == "PNG"
    assert np.array_equal(np.asarray(encoded.decode()), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_stored_rotation_is_applied_or_ignored(kind, orientation) -> None:
    picture = PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    exif, buffer = PillowImage.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(buffer, kind, exif=exif)
    image = Image(buffer.getvalue())
    stored = PillowImage.open(io.BytesIO(image.data))
    turned = ImageOps.exif_transpose(stored).convert("RGB")
    assert np.array_equal(np.asarray(image.decode()), np.asarray(turned))
    assert image.size() == image.decode().size == (turned.size if orientation else (30, 20))
    assert image.size("ignore") == image.decode("ignore").size == stored.size
    assert np.array_equal(np.asarray(image.decode("ignore")), np.asarray(stored.convert("RGB")))
    assert [blank(image).size(mode) for mode in ("apply", "ignore")] == [image.size(), image.size("ignore")]


def test_the_size_of_an_image_is_known_without_decoding_it() -> None:
    buffer = io.BytesIO()
    PillowImage.effect_noise((300, 200), 50).save(buffer, "PNG")
    assert Image(buffer.getvalue()[:200]).size() == (300, 200)
    assert encode_png(PillowImage.new("RGB", (30, 20)), orientation=8).size() == (20, 30)
