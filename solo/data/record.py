"""The common format of all data. A record has an id and turns. A turn has a role, and texts and images in order.

The loss covers the text of `assistant` turns, but not of `system` and `user` turns. A `text` turn is a document without
a speaker, such as a caption or a web page: all of its text is covered by the loss, and it has no role tokens.
`Turn.learned=False` excludes a turn from the loss.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from typing import Literal

from PIL import ExifTags
from PIL import Image as PillowImage

from solo.config import ImageConfig
from solo.data.images.decoding import Exif, decode, read_header

Role = Literal["system", "user", "assistant", "text"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "text")


@dataclass(frozen=True, slots=True)
class Image:
    """An encoded image file (PNG, JPEG, ...), as bytes.

    `file` is the path of the image, if it is a separate file. Preparation records it to detect a replaced image. It is
    ignored in comparisons.
    """

    data: bytes
    file: str | None = field(default=None, compare=False, repr=False)

    def size(self, exif: Exif = "apply") -> tuple[int, int]:
        """Returns (width, height) in pixels, read from the header.

        Args:
            exif: "apply" returns the size after the rotation in the file's EXIF data, "ignore" the stored size.

        Raises:
            OSError: the bytes are not an image; the message says what they are.
        """
        return read_header(self.data).size(exif)

    def header(self) -> tuple[int, int, bool]:
        """Returns width and height in pixels as stored, and whether EXIF asks to swap them.

        Raises:
            OSError: the bytes are not an image; the message says what they are.
        """
        header = read_header(self.data)
        return header.width, header.height, header.swapped

    def decode(self, exif: Exif = "apply") -> PillowImage.Image:
        """Returns the pixels as an RGB Pillow image, with transparent pixels on white.

        Args:
            exif: "apply" rotates the image as its EXIF data specifies.

        Raises:
            OSError: the image cannot be decoded; the message says why.
        """
        return decode(self.data, ImageConfig(exif=exif))


@dataclass(frozen=True, slots=True)
class Turn:
    """The texts and images of one speaker, in reading order.

    `learned` is whether the loss covers an `assistant` or `text` turn and the token that ends it. It has no effect on
    `system` and `user` turns, which the loss never covers.
    """

    role: Role
    content: tuple[str | Image, ...]
    learned: bool = True

    @property
    def supervised(self) -> bool:
        """Whether the texts of the turn are targets of the loss."""
        return self.learned and self.role in ("assistant", "text")


@dataclass(frozen=True, slots=True)
class Place:
    """The location of an example in its source: a file, and the number of a line, row or member in it, from 1."""

    file: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """An example of a source. `id` names it in reports and in `quarantine.jsonl`; `place` says where to find it."""

    id: str
    turns: tuple[Turn, ...]
    place: Place | None = field(default=None, compare=False)

    def images(self) -> list[Image]:
        """Returns all images in reading order."""
        return [part for turn in self.turns for part in turn.content if isinstance(part, Image)]

    def to_bytes(self) -> bytes:
        """Returns a JSON header, with byte counts in place of images, followed by the images' bytes."""
        turns = [
            {"role": turn.role, "content": [part if isinstance(part, str) else len(part.data) for part in turn.content]}
            | ({} if turn.learned else {"learned": False})
            for turn in self.turns
        ]
        header = json.dumps({"id": self.id, "turns": turns}, ensure_ascii=False).encode()
        return b"".join([struct.pack("<I", len(header)), header, *(image.data for image in self.images())])

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Returns the record that `to_bytes` wrote."""
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
            turns.append(Turn(turn["role"], tuple(content), turn.get("learned", True)))
        return cls(header["id"], tuple(turns))


def encode_png(image: PillowImage.Image, orientation: int = 1) -> Image:
    """Encodes a Pillow image as PNG, with an EXIF `orientation` if it is not 1."""
    buffer, exif = io.BytesIO(), PillowImage.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(buffer, format="PNG", compress_level=1, exif=exif)
    return Image(buffer.getvalue())


def blank(image: Image) -> Image:
    """Returns a uniform mid-grey image of the same size, to measure how much the pixels contribute to a score.

    It has the same EXIF orientation, so that it has the same size whether EXIF is applied or not.
    """
    header = read_header(image.data)
    return encode_png(PillowImage.new("RGB", (header.width, header.height), (128, 128, 128)), header.orientation)
