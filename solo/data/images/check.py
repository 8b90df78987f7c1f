"""What preparation requires of images."""

from __future__ import annotations

from typing import NamedTuple

from solo.config import Config, ImageConfig
from solo.data.images.decoding import MAX_FILE_PIXELS, Header, read_header, verify
from solo.data.images.patches import require_decoder

_FAST = ImageConfig(decoder="fast")


class ImageCheck(NamedTuple):
    """The requirements of images. Those that do not meet them are left out.

    decoded     they can be decoded; otherwise their headers alone are read (`DataConfig.verify_images`)
    background  see `ImageConfig.background`: "published" takes pixels of an unknown range
    max_pixels  see `ImageConfig.max_file_pixels`
    strict      JPEG files are decoded by libjpeg-turbo, which reports missing data that Pillow fills with grey
    """

    decoded: bool
    background: str
    max_pixels: int
    strict: bool = False

    @classmethod
    def of(cls, config: Config) -> ImageCheck:
        """Returns the requirements of a config."""
        image = config.image
        return cls(config.data.verify_images, image.background, image.max_file_pixels, image.decoder == "fast")

    def header(self, data: bytes) -> Header:
        """Returns the header of an image file that meets the requirements.

        Raises:
            ImageError: it does not.
            ConfigError: `strict` needs libraries that are not installed.
        """
        if not self.decoded:
            return read_header(data, self.max_pixels)
        if self.strict:
            require_decoder(_FAST)
            from solo.data.images import fast

            header = read_header(data, self.max_pixels)
            if fast.is_sound_jpeg(data, header):
                return header
        return verify(data, self.background, self.max_pixels)


ALL_IMAGES = ImageCheck(True, "white", MAX_FILE_PIXELS)
