"""The one normal form of data: a record is an id and turns; a turn is a role and texts and images in order.

Roles: `system` and `user` are read, `assistant` is read and learned, `text` is a document without a speaker
(a caption, a web page): learned throughout, without role tokens.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from PIL import ExifTags
from PIL import Image as PillowImage

Exif = Literal["apply", "ignore"]
Role = Literal["system", "user", "assistant", "text"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "text")


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """Pillow reports a bad file by whatever its decoder ran into; callers need to catch one kind of error."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image file (PNG, JPEG, ...), as bytes."""

    data: bytes

    def size(self, exif: Exif = "apply") -> tuple[int, int]:
        """(width, height) in pixels, from the header alone. Raises OSError where it is no image.

        exif: apply is the size after the rotation that the file asks for, ignore the stored one.
        """
        with _only_os_errors(), PillowImage.open(io.BytesIO(self.data)) as image:
            width, height = image.size
            return (height, width) if _orientation(image, exif) > 4 else (width, height)

    def decode(self, exif: Exif = "apply") -> PillowImage.Image:
        """The pixels as an RGB Pillow image; alpha is dropped. Raises OSError where they cannot be decoded.

        exif: apply honours the rotation that the file asks for.
        """
        with _only_os_errors(), PillowImage.open(io.BytesIO(self.data)) as image:
            turned = _TURNS.get(_orientation(image, exif))
            pixels = image.convert("RGB")
            return pixels.transpose(turned) if turned is not None else pixels


def _orientation(image: PillowImage.Image, exif: Exif) -> int:
    """EXIF's 1 to 8, of a file that was opened but not decoded."""
    # Pillow turns a TIFF by itself, and would decode a PNG to see whether its header comes last.
    if exif == "ignore" or image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in _TURNS else 1


# What undoes each orientation; above 4, width and height change places.
_TURNS = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says: texts and images in reading order."""

    role: Role
    content: tuple[str | Image, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One example of a source. `id` names it in reports and in `quarantine.jsonl`."""

    id: str
    turns: tuple[Turn, ...]

    def images(self) -> list[Image]:
        """All images in reading order."""
        return [part for turn in self.turns for part in turn.content if isinstance(part, Image)]

    def to_bytes(self) -> bytes:
        """A JSON header with image sizes in place of images, then the images' bytes."""
        turns = [
            {"role": turn.role, "content": [part if isinstance(part, str) else len(part.data) for part in turn.content]}
            for turn in self.turns
        ]
        header = json.dumps({"id": self.id, "turns": turns}, ensure_ascii=False).encode()
        return b"".join([struct.pack("<I", len(header)), header, *(image.data for image in self.images())])

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Inverse of `to_bytes`."""
        (length,) = struct.unpack_from("<I", data)
        header = json.loads(data[4 : 4 + length])
        cursor = 4 + length
        turns = []
        for turn in header["turns"]:
            content: list[str | Image] = []
            for part in turn["content"]:
                if isinstance(part, int):
                    content.append(Image(data[cursor : cursor + part]))
                    cursor += part
                else:
                    content.append(part)
            turns.append(Turn(turn["role"], tuple(content)))
        return cls(header["id"], tuple(turns))


def parse_conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Read `[{"role": ..., "content": ...}]` into turns.

    Content is a string, or a list whose parts are strings, `{"type": "text", "text": ...}` or
    `{"type": "image", "image": X}`, X being a path, encoded bytes, or a Pillow image.

    Raises:
        ValueError: an unknown role or part, or an image file that cannot be read; the message says which.
    """
    turns = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"turn {number}: role {role!r} is none of {', '.join(ROLES)}")
        parts = [content] if isinstance(content, str) or not isinstance(content, Sequence) else list(content)
        turns.append(Turn(cast(Role, role), tuple(_parse_part(part, f"turn {number}") for part in parts)))
    return tuple(turns)


def _parse_part(part: Any, where: str) -> str | Image:
    if isinstance(part, str | Image):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return cast(str, part["text"])
    if isinstance(part, Mapping) and part.get("type") == "image" and "image" in part:
        return _parse_image(part["image"], where)
    raise ValueError(f"{where}: a part is a string, a text part or an image part, not {part!r:.80}")


def _parse_image(image: Any, where: str) -> Image:
    if isinstance(image, bytes):
        return Image(image)
    if isinstance(image, str | Path):
        try:
            found = Image(Path(image).read_bytes())
            found.size()
        except OSError as error:
            reason = error.strerror or "it is no image that Pillow knows"
            raise ValueError(f"{where}: cannot read image {image}: {reason}") from None
        return found
    if isinstance(image, PillowImage.Image):
        return encode_png(image)
    raise ValueError(f"{where}: an image is a path, bytes, or a Pillow image, not {type(image).__name__}")


def encode_png(image: PillowImage.Image, orientation: int = 1) -> Image:
    """A Pillow image as PNG bytes, with a note that it is to be turned where `orientation` (EXIF) is not 1."""
    buffer, exif = io.BytesIO(), PillowImage.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(buffer, format="PNG", compress_level=1, exif=exif)
    return Image(buffer.getvalue())


def blank(image: Image) -> Image:
    """A uniform mid-grey image of the same size: what is left of a score with it, the pixels did not earn.

    It asks to be turned as the image does, so that the size is the same whether that is honoured or not.
    """
    with _only_os_errors(), PillowImage.open(io.BytesIO(image.data)) as opened:
        return encode_png(PillowImage.new("RGB", opened.size, (128, 128, 128)), _orientation(opened, "apply"))
