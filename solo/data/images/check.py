"""What preparation requires of images."""

from __future__ import annotations

from typing import NamedTuple

from solo.config import Config
from solo.data.images.decoding import MAX_FILE_PIXELS, Header, read_header, verify


class ImageCheck(NamedTuple):
    """What is required of images. It decides which ones are left out.

    decoded     they can be decoded; otherwise their headers alone are read (`DataConfig.verify_images`)
    background  see `ImageConfig.background`: "published" takes pixels of an unknown range
    max_pixels  see `ImageConfig.max_file_pixels`
    """

    decoded: bool
    background: str
    max_pixels: int

    @classmethod
    def of(cls, config: Config) -> ImageCheck:
        """Returns the requirements of a config."""
        return cls(config.data.verify_images, config.image.background, config.image.max_file_pixels)

    def header(self, data: bytes) -> Header:
        """Returns the header of an image file that meets the requirements.

        Raises:
            ImageError: it does not.
        """
        if self.decoded:
            return verify(data, self.background, self.max_pixels)
        return read_header(data, self.max_pixels)


ALL_IMAGES = ImageCheck(True, "white", MAX_FILE_PIXELS)
