"""The requirements that images must meet to be prepared."""

from __future__ import annotations

from typing import NamedTuple

from solo.config import Config, ImageConfig
from solo.data.images.decoding import MAX_FILE_PIXELS, Header, read_header, verify
from solo.data.images.patches import require_decoder

_FAST = ImageConfig(decoder="fast")


class ImageCheck(NamedTuple):
    """The requirements on images. Images that fail them are left out.

    decoded     whether images must decode; if not, only headers are read (`DataConfig.verify_images`)
    background  see `ImageConfig.background`; "published" accepts pixels of an unknown range
    max_pixels  see `ImageConfig.max_file_pixels`
    strict      whether libjpeg-turbo decodes JPEG files; it reports missing data, which Pillow fills with grey
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
        """Returns the header of an image file.

        Raises:
            ImageError: the file does not meet the requirements.
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
