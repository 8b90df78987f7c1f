"""Decodes image files to pixels. Every fault of a file raises an `ImageError` that says what is wrong.

Only the first frame of an animation and the first page of a TIFF file are read. The format is detected from the bytes
of the file. Pillow plug-ins that start other programs or read no pixels are not used.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

from PIL import ExifTags
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.images.metadata import jpeg2000_bits, without_metadata
from solo.data.images.reasons import ImageError, reason
from solo.data.images.rgb import AS_PUBLISHED, to_rgb

Exif = Literal["apply", "ignore"]
T = TypeVar("T")

MAX_FILE_PIXELS: int = ImageConfig.model_fields["max_file_pixels"].default
MAX_SIDE = 65_535  # the index of a source stores sides as uint16
_MAX_SCANS = 500  # a progressive JPEG has about ten; each additional scan costs a pass over the whole image

# Pillow warns about oddities in a file. Preparation reports those that make an image unusable, and the others would
# flood the terminal. Warning filters are global to the process, so this is done once, not around each call.
warnings.filterwarnings("ignore", module=r"PIL\.")
PillowImage.init()
_READ = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000", "DIB", "QOI", "PCX", "SGI", "DDS", "PSD"),
    "TGA",  # last, because its files have no signature
)
_FORMATS = tuple(name for name in _READ if name in PillowImage.OPEN)

# EXIF orientation -> the operation that undoes it. Orientations above 4 swap width and height.
_TURNS = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """The information in a file's header, without decoding.

    width, height  in pixels, as stored
    orientation    EXIF orientation, 1 to 8
    format, mode   as Pillow names them
    """

    width: int
    height: int
    orientation: int
    format: str
    mode: str

    @property
    def swapped(self) -> bool:
        """Whether the orientation swaps width and height."""
        return self.orientation > 4

    def size(self, exif: Exif) -> tuple[int, int]:
        """Returns (width, height); if `exif` is "apply", after the rotation that the file asks for."""
        return (self.height, self.width) if exif == "apply" and self.swapped else (self.width, self.height)


def read_header(data: bytes, max_pixels: int = MAX_FILE_PIXELS) -> Header:
    """Reads the header of an image file, without decoding pixels.

    Args:
        data: content of the file.
        max_pixels: see `ImageConfig.max_file_pixels`.

    Raises:
        ImageError: the bytes are not an image, or the image is too large.
    """
    return _work(data, max_pixels, lambda image, header: header)


def decode(data: bytes, config: ImageConfig) -> PillowImage.Image:
    """Decodes an image file with Pillow. Returns an RGB image, rotated as `config.exif` says.

    Raises:
        ImageError: the image cannot be decoded.
    """

    def decoded(image: PillowImage.Image, header: Header) -> PillowImage.Image:
        pixels = _rgb(image, data, config.background)
        if pixels.size != (header.width, header.height):
            raise ImageError(
                f"its header says {header.width} x {header.height} pixels, its content {pixels.width} x {pixels.height}"
            )
        return turn(pixels, header.orientation if config.exif == "apply" else 1)

    return _work(data, config.max_file_pixels, decoded)


def verify(data: bytes, background: str = "white", max_pixels: int = MAX_FILE_PIXELS) -> Header:
    """Checks that an image file can be decoded, at half the cost of decoding it if it is a JPEG.

    Args:
        data: content of the file.
        background: see `ImageConfig.background`; "published" accepts pixels of any range.
        max_pixels: see `ImageConfig.max_file_pixels`.

    Raises:
        ImageError: the image cannot be decoded; `decode` would raise it too.
    """

    def checked(image: PillowImage.Image, header: Header) -> Header:
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            # This reads all of the compressed data, but computes only the mean grey value of each 8 x 8 block.
            image.draft("L", (1, 1))
            image.load()
        else:
            _rgb(image, data, background)
        return header

    return _work(data, max_pixels, checked)


def _rgb(image: PillowImage.Image, data: bytes, background: str) -> PillowImage.Image:
    """Returns an open image as RGB; see `to_rgb`."""
    # Pillow converts these to 8 bits without clipping, so white becomes black.
    if image.format == "JPEG2000" and image.mode != "I;16" and background not in AS_PUBLISHED:
        bits = jpeg2000_bits(data) or 8
        if bits > 8:
            raise ImageError(f"it is a JPEG 2000 file with colours of {bits} bits per value; 8 can be read")
    return to_rgb(image, background)


def turn(image: PillowImage.Image, orientation: int) -> PillowImage.Image:
    """Undoes an EXIF orientation."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _work(data: bytes, max_pixels: int, work: Callable[[PillowImage.Image, Header], T]) -> T:
    """Applies a function to an opened image file. If Pillow fails, retries with the metadata removed."""
    try:
        return _attempt(data, max_pixels, work)
    except ImageError:
        raise
    except Exception as error:
        bare = without_metadata(data)
        if bare is None or bare == data:
            raise ImageError(reason(data, error)) from error
    try:
        return _attempt(bare, max_pixels, work)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(reason(data, error)) from error


def _attempt(data: bytes, max_pixels: int, work: Callable[[PillowImage.Image, Header], T]) -> T:
    try:
        opened = PillowImage.open(io.BytesIO(data), formats=_FORMATS)
    except PillowImage.DecompressionBombError as error:  # more pixels than the largest limit that can be set
        raise ImageError(f"it has more pixels than image.max_file_pixels allows ({max_pixels:,})") from error
    with opened as image:
        return work(image, _checked_header(image, data, max_pixels))


def _checked_header(image: PillowImage.Image, data: bytes, max_pixels: int) -> Header:
    width, height = image.size
    if min(width, height) < 1:
        raise ImageError(f"it has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"it has {width:,} x {height:,} pixels, more than image.max_file_pixels allows ({max_pixels:,})"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"it has {width:,} x {height:,} pixels; a side may have at most {MAX_SIDE:,}")
    if image.info.get("progressive") and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise ImageError(f"it is a progressive JPEG of {scans:,} scans, which would take minutes to decode")
    return Header(width, height, _orientation(image), image.format or "", image.mode)


def _orientation(image: PillowImage.Image) -> int:
    """Returns the EXIF orientation of a file that is open but not decoded; 1 if it is missing or invalid."""
    # Pillow rotates TIFF files itself, and would decode a whole PNG to look for EXIF data at its end.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _TURNS else 1
    except Exception:  # Pillow raises many classes of errors for a bad EXIF section, although the pixels are fine
        return 1
