"""Files as people have them, made by several libraries: the right pixels, or a reason in plain words."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import TiffImagePlugin

from solo.config import ImageConfig
from solo.data.images.decoding import decode, read_header, verify
from solo.data.images.reasons import ImageError
from tests.data.images.files import chunk, encoded, jpeg, photograph, png_header, with_chunks, with_segments

PLAIN = ImageConfig()
PUBLISHED = ImageConfig(background="published")
PHOTO = jpeg(64, 48)
PNG = encoded(PillowImage.fromarray(photograph(64, 48)), "PNG")


def pixels(data: bytes, config: ImageConfig = PLAIN) -> np.ndarray:
    found = decode(data, config)
    assert found.mode == "RGB"
    return np.asarray(found)


def grey(data: bytes) -> np.ndarray:
    """Returns the grey values of an image that must be grey."""
    found = pixels(data)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def opened(data: bytes) -> PillowImage.Image:
    return PillowImage.open(io.BytesIO(data))


# ------------------------------------------------------------------------------------------ values

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)  # mean 127.5


def opencv(kind: str, values: np.ndarray) -> bytes:
    cv2 = pytest.importorskip("cv2")
    done, data = cv2.imencode(kind, values)
    assert done
    return data.tobytes()


DEEP = RAMP.astype(np.uint16) * 257
SIXTEEN_BITS = {
    "PNG by Pillow": lambda: encoded(PillowImage.fromarray(DEEP), "PNG"),
    "PNG by OpenCV": lambda: opencv(".png", DEEP),
    "TIFF by Pillow": lambda: encoded(PillowImage.fromarray(DEEP), "TIFF"),
    "TIFF by OpenCV": lambda: opencv(".tiff", DEEP),
    "big-endian TIFF": lambda: encoded(PillowImage.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes()), "TIFF"),
    "PGM by Pillow": lambda: encoded(PillowImage.fromarray(DEEP), "PPM"),
    "PGM of 12 bits": lambda: b"P5 16 16 4095\n" + (RAMP.astype(np.uint16) * 16 + 8).astype(">u2").tobytes(),
    "PGM by OpenCV": lambda: opencv(".pgm", DEEP),
}


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_deep_grey_keeps_its_brightness(name):
    np.testing.assert_array_equal(grey(SIXTEEN_BITS[name]()), RAMP)


@pytest.mark.parametrize("background", ["white", "#102030"])
def test_deep_colour_in_jpeg_2000_is_refused(background):
    # Pillow makes white of it black.
    ramp, deep = (np.kron(values, np.ones((4, 4), values.dtype)) for values in (RAMP, DEEP))
    data = opencv(".jp2", np.stack([deep] * 3, axis=-1))
    for read in (lambda: decode(data, ImageConfig(background=background)), lambda: verify(data, background)):
        with pytest.raises(ImageError, match="JPEG 2000 file with colours of 16 bits per value; 8 can be read"):
            read()
    np.testing.assert_array_equal(pixels(data, PUBLISHED), np.asarray(opened(data).convert("RGB")))
    np.testing.assert_array_equal(grey(opencv(".jp2", deep)), ramp)
    np.testing.assert_array_equal(grey(opencv(".jp2", np.stack([ramp] * 3, axis=-1))), ramp)


def test_white_may_be_zero():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    data = encoded(PillowImage.fromarray(DEEP), "TIFF", tiffinfo=tags)
    assert opened(data).tag_v2[262] == 0
    np.testing.assert_array_equal(grey(data), 255 - RAMP)


def test_deep_grey_and_colour_agree():
    """Pillow reads 16-bit colour by its high bytes."""
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(0).integers(0, 65536, (9, 7)).astype(np.uint16)
    done, colour = cv2.imencode(".png", np.repeat(values[..., None], 3, axis=-1))
    assert done
    np.testing.assert_array_equal(grey(opencv(".png", values)), grey(colour.tobytes()))


def test_one_value_of_deep_grey_may_be_transparent():
    data = encoded(PillowImage.fromarray(DEEP), "PNG")
    data = with_chunks(data, chunk(b"tRNS", struct.pack(">H", 10 * 257)))
    expected = RAMP.copy()
    expected[RAMP == 10] = 255
    np.testing.assert_array_equal(grey(data), expected)


@pytest.mark.parametrize("kind", ["TIFF", "OpenCV", "PFM"])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_floating_point_is_scaled(kind, scale):
    values = (RAMP / 255 * scale).astype(np.float32)
    image = PillowImage.fromarray(values)
    data = opencv(".tiff", values) if kind == "OpenCV" else encoded(image, "TIFF" if kind == "TIFF" else "PPM")
    np.testing.assert_array_equal(grey(data), RAMP)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([[0, np.nan]]), "NaN or infinity"),
        (np.float32([[0, np.inf]]), "NaN or infinity"),
        (np.float32([[0, 4000.5]]), "numbers from 0 to 4000.5"),
        (np.float32([[-1, 1]]), "numbers from -1 to 1"),
        (np.int32([[0, 70000]]), "numbers from 0 to 70000"),
    ],
)
def test_an_unknown_range_is_refused(values, expected):
    data = encoded(PillowImage.fromarray(values), "TIFF")
    for work in (lambda: decode(data, PLAIN), lambda: verify(data)):
        with pytest.raises(ImageError, match=expected):
            work()
    assert verify(data, "published").width == 2


def test_integers_of_32_bits():
    np.testing.assert_array_equal(grey(encoded(PillowImage.fromarray(RAMP.astype(np.int32)), "TIFF")), RAMP)


RED = (200, 10, 20)
DRAWING = np.zeros((4, 6, 4), np.uint8)
DRAWING[:, :2] = (*RED, 255)  # the other columns are transparent black
DRAWING[:, 2] = (*RED, 51)  # a fifth of the colour


def transparent_files() -> dict[str, bytes]:
    image = PillowImage.fromarray(DRAWING)
    hard = PillowImage.fromarray(np.where(DRAWING[..., 3:] == 255, DRAWING, 0).astype(np.uint8))
    palette = hard.convert("RGB").quantize(4)
    black = palette.getpixel((5, 0))
    return {
        "PNG": encoded(image, "PNG"),
        "WEBP": encoded(image, "WEBP", lossless=True),
        "TIFF": encoded(image, "TIFF"),
        "palette": encoded(palette, "PNG", transparency=black),
        "palette of bytes": encoded(palette, "PNG", transparency=bytes([0 if i == black else 255 for i in range(4)])),
        "GIF": encoded(palette, "GIF", transparency=black),
        "colour key": encoded(hard.convert("RGB"), "PNG", transparency=(0, 0, 0)),
    }


@pytest.mark.parametrize("name", transparent_files())
def test_transparent_pixels_are_composited(name):
    data = transparent_files()[name]
    for background, colour in (("white", (255, 255, 255)), ("#0080ff", (0, 128, 255))):
        found = pixels(data, ImageConfig(background=background))
        assert found[0, 0].tolist() == list(RED)
        assert found[0, 5].tolist() == list(colour)
        if name in ("PNG", "WEBP", "TIFF"):
            assert found[0, 2].tolist() == [
                round(0.2 * over + 0.8 * under) for over, under in zip(RED, colour, strict=True)
            ]
    np.testing.assert_array_equal(pixels(data, PUBLISHED), np.asarray(opened(data).convert("RGB")))


def test_grey_and_alpha():
    image = PillowImage.merge("LA", [PillowImage.new("L", (2, 1), 40), PillowImage.fromarray(np.uint8([[255, 0]]))])
    assert grey(encoded(image, "PNG")).tolist() == [[40, 255]]


@pytest.mark.parametrize("background", ["white", "published"])
def test_what_needs_no_rule_is_as_pillow_gives_it(background):
    image = PillowImage.fromarray(photograph(33, 21))
    files = [encoded(image.convert(mode), "TIFF") for mode in ("1", "L", "P", "RGB", "CMYK")]
    files += [encoded(image, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "TGA")]
    files += [encoded(image.convert("CMYK"), "JPEG"), encoded(image.convert("L"), "JPEG", progressive=True)]
    for data in files:
        expected = np.asarray(opened(data).convert("RGB"))
        np.testing.assert_array_equal(pixels(data, ImageConfig(background=background)), expected)


def test_cmyk_of_adobe_is_not_inverted():
    """Adobe's JPEG files hold inverted inks."""
    white = encoded(PillowImage.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=95)
    assert b"Adobe" in white
    assert pixels(white).min() >= 250
    cyan = encoded(PillowImage.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95)
    assert np.abs(pixels(cyan)[8, 8].astype(int) - (0, 255, 255)).max() <= 5


def test_a_colour_profile_is_not_applied():
    from PIL import ImageCms

    image = PillowImage.new("RGB", (8, 8), (200, 100, 50))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixels(encoded(image, "PNG", icc_profile=profile))[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_read(kind):
    frames = [PillowImage.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert opened(data).n_frames == 3
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


# ---------------------------------------------------------------------------------------- metadata


def big_text() -> bytes:
    return chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(3_000_000)))


GOOD = {
    "3 MB of compressed text": with_chunks(PNG, big_text()),
    "3 MB of text after the pixels": PNG[:-12] + big_text() + PNG[-12:],
    "100 MB of text": with_chunks(PNG, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 100),
    "a large profile": with_chunks(PNG, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(3_000_000)))),
    "a broken profile": with_chunks(PNG, chunk(b"iCCP", b"a\0\0not compressed")),
    "text with a wrong checksum": with_chunks(PNG, chunk(b"tEXt", b"a\0b")[:-1] + b"?"),
    "a broken eXIf": with_chunks(PNG, chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
    "an eXIf of nothing": with_chunks(PNG, chunk(b"eXIf", b"")),
    "broken animation": with_chunks(PNG, chunk(b"acTL", b"\0")),
    "broken EXIF": with_segments(PHOTO, (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff")),
    "EXIF of nothing": with_segments(PHOTO, (0xE1, b"Exif\0\0")),
    "EXIF cut off": with_segments(PHOTO, (0xE1, b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01")),
    "XMP that is not Unicode": with_segments(PHOTO, (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xa8\xff<x")),
    "a broken list of pictures": with_segments(PHOTO, (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\0")),
    "a broken profile in JPEG": with_segments(PHOTO, (0xE2, b"ICC_PROFILE\0")),
    "broken Photoshop data": with_segments(PHOTO, (0xED, b"Photoshop 3.0\x008BIM\x03\xed")),
    "a broken JFIF segment": with_segments(PHOTO, (0xE0, b"JFIF\0")),
    "a broken Adobe segment": with_segments(PHOTO, (0xEE, b"Adobe")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_image_is_read_whatever_its_metadata(name):
    data = GOOD[name]
    expected = np.asarray(opened(PNG if data.startswith(b"\x89PNG") else PHOTO).convert("RGB"))
    assert read_header(data)[:3] == (64, 48, 1)
    assert verify(data)[:3] == (64, 48, 1)
    np.testing.assert_array_equal(pixels(data), expected)


def test_the_orientation_survives_bad_metadata():
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    data = encoded(PillowImage.fromarray(photograph(64, 48)), "PNG", exif=exif)
    data = with_chunks(data, big_text())
    assert read_header(data).size("apply") == decode(data, PLAIN).size == (48, 64)
    assert decode(data, ImageConfig(exif="ignore")).size == (64, 48)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0xE0, 0xFE))
def test_segments_of_any_content_are_harmless(content, marker):
    if 0xF0 <= marker < 0xFE:
        return
    data = with_segments(PHOTO, (marker, b"Exif\0\0" + content if marker == 0xE1 else content))
    assert read_header(data)[:2] == (64, 48)
    verify(data)
    decode(data, PLAIN)


# ----------------------------------------------------------------------------------------- reasons

BOXES = b"\0\0\0\x18ftyp%s\0\0\0\0mif1miaf"
NOT_IMAGES = {
    "an empty file": b"",
    "a text file": "just à caption\n".encode() * 100,
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "an HTML page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a HEIC image": BOXES % b"heic" + bytes(40),
    "an MP4 or QuickTime video": BOXES % b"isom" + bytes(40),
    "a JPEG XL image": b"\xff\x0a\xfa\x7f\x01",
    "a PDF document": b"%PDF-1.7\n",
    "a PostScript document": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "a ZIP archive": b"PK\3\4" + bytes(30),
    "gzip-compressed": b"\x1f\x8b\x08" + bytes(30),
    "a pointer to a file in Git LFS, not the file": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "only zero bytes": bytes(5000),
    "an icon file": encoded(PillowImage.new("RGB", (16, 16)), "ICO"),
}


def failure(data: bytes, config: ImageConfig = PLAIN) -> str:
    """Returns why a file is not decoded."""
    with pytest.raises(ImageError) as raised:
        decode(data, config)
    assert not re.search(r"0x[0-9a-f]{6}|BytesIO|Error", str(raised.value)), raised.value
    return str(raised.value)


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_not_an_image_is_named(name):
    assert failure(NOT_IMAGES[name]) == f"it is {name}"
    with pytest.raises(ImageError, match=name):
        read_header(NOT_IMAGES[name])


def test_unknown_bytes_are_shown():
    shown = "01 fe 02 fd 01 fe 02 fd"
    assert failure(b"\x01\xfe\x02\xfd" * 9) == f"its format is unknown (it begins with the bytes {shown})"


def test_what_pillow_does_not_read_is_named():
    at = PHOTO.index(b"\xff\xc0") + 4
    twelve = PHOTO[:at] + b"\x0c" + PHOTO[at + 1 :]
    assert failure(twelve) == "it is a JPEG file of 12 bits per value; 8 can be read"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.98])
def test_cut_files_are_refused(kind, share):
    whole = encoded(PillowImage.fromarray(photograph(120, 90)), kind)
    cut = whole[: int(len(whole) * share)]
    reason = failure(cut)
    assert re.search(r"cut off after|damaged|format is unknown", reason), reason
    if kind in ("PNG", "WEBP", "BMP"):
        assert re.search(rf"cut off after {len(cut):,} of [\d,]+ bytes", reason), reason
        stated = int(re.search(r"of ([\d,]+) bytes", reason)[1].replace(",", ""))
        assert len(cut) < stated <= len(whole)
    with pytest.raises(ImageError, match=re.escape(reason)):
        verify(cut)


@pytest.mark.parametrize("progressive", [False, True])
def test_checking_a_jpeg_finds_what_decoding_finds(progressive):
    """`verify` computes fewer pixels, and must not miss a cut."""
    data = encoded(PillowImage.fromarray(photograph(90, 70)), "JPEG", progressive=progressive)
    for end in range(2, len(data), 37):
        failed = []
        for work in (lambda cut: decode(cut, PLAIN), verify):
            try:
                work(data[:end])
            except ImageError as error:
                failed.append(str(error))
        assert len(failed) in (0, 2), (end, failed)
        assert failed or end > len(data) - 8


# ------------------------------------------------------------------------------------------ limits


def test_an_image_above_the_limit_is_refused_from_its_header():
    small = ImageConfig(max_file_pixels=64 * 48 - 1)
    for data in (PNG, PHOTO):
        assert failure(data, small) == "it has 64 x 48 pixels, more than image.max_file_pixels allows (3,071)"
        decode(data, ImageConfig(max_file_pixels=64 * 48))
    # Decoding these would fail otherwise, since their pixels are missing.
    assert "12,000 x 9,000 pixels, more than" in failure(png_header(12_000, 9_000))
    assert "more pixels than image.max_file_pixels allows (89,478,485)" in failure(png_header(100_000, 100_000))
    assert "a side may have at most 65,535" in failure(png_header(70_000, 2))
    with pytest.raises(ImageError, match="more pixels"):
        read_header(png_header(100_000, 100_000))


def test_a_jpeg_of_too_many_scans_is_refused():
    data = encoded(PillowImage.new("RGB", (8, 8)), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    assert "progressive JPEG of" in failure(data[:scan] + data[scan:-2] * 100 + data[-2:])


def test_nothing_is_written_to_the_terminal():
    """Pillow's warnings, libtiff's and libpng's own messages."""
    script = """
import io, sys
from PIL import Image
from solo.config import ImageConfig
from solo.data.images.decoding import decode, read_header
for name in sys.stdin.read().split():
    try:
        decode(bytes.fromhex(name), ImageConfig(max_file_pixels=178_956_970))
    except OSError:
        pass
"""
    tiff = encoded(PillowImage.fromarray(photograph(32, 32)), "TIFF", compression="tiff_lzw")
    palette = PillowImage.new("P", (4, 4))
    files = [
        *GOOD.values(),
        png_header(12_000, 9_000),
        tiff[: len(tiff) // 2],
        tiff.replace(struct.pack("<HHI", 0x0100, 4, 1), struct.pack("<HHI", 0x0100, 9, 70_000)),
        encoded(palette, "PNG", transparency=bytes(range(200))),
    ]
    files = [data for data in files if len(data) < 100_000]
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script],
        input=" ".join(data.hex() for data in files),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert "PIL" not in done.stderr
    assert "TIFF" not in done.stderr


def test_threads_decode_at_once():
    files = [*transparent_files().values(), PNG, PHOTO, SIXTEEN_BITS["PNG by Pillow"]()]
    expected = [pixels(data) for data in files]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(10):
            for number, data in enumerate(files):
                if not np.array_equal(pixels(data), expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("alpha", "on_white"),
    [
        ([0, 0, 0, 0], {"neo": False, "neo_unify": True}),
        ([0, 90, 90, 255], {"neo": True, "neo_unify": True}),
        ([1, 90, 90, 255], {"neo": False, "neo_unify": True}),
        ([255, 255, 255, 255], {"neo": False, "neo_unify": True}),
    ],
)
def test_backgrounds_of_neo(alpha, on_white):
    """`load_image_native` of NEO and of SenseNova-U1; only RGBA is put on white, whatever else is transparent."""
    image = PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (2, 2, 4), np.uint8))
    image.putalpha(PillowImage.fromarray(np.array(alpha, np.uint8).reshape(2, 2)))
    white = PillowImage.new("RGB", (2, 2), (255, 255, 255))
    white.paste(image, mask=image.split()[3])
    for background, wanted in on_white.items():
        expected = white if wanted else image.convert("RGB")
        found = decode(encoded(image, "PNG"), ImageConfig(background=background))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        for other in (image.convert("LA"), image.convert("P")):
            found = decode(encoded(other, "PNG"), ImageConfig(background=background))
            np.testing.assert_array_equal(np.asarray(found), np.asarray(other.convert("RGB")))
