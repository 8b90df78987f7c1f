"""Resizes images, cuts them into patches and normalises them, with the same pixels as in training, bit for bit.

`image` in `preprocessor_config.json` is the section of that name in the training config.
"""

from .versions_solo import OLDEST  # noqa: F401  refuses an older transformers before its names are imported

# isort: split
import base64
import io
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image, ImageColor, ImageOps
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
BEGIN_MARKER, ROW_MARKER = -1, -2
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_PADDING = 1  # value of 255 that pads an image to whole patches


class Grid(NamedTuple):
    """An image as `tiles` grids of `rows` x `columns` patches."""

    tiles: int
    rows: int
    columns: int


class SoloMonolithImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """`images_per_text`: number of images of each text, which may share a budget (`share_tiles`, `share_pixels`)."""

    images_per_text: list[int] | None
    max_tiles: int | None
    min_pixels: int | None
    max_pixels: int | None


# The limits on an image's size that each geometry has.
_LIMITS = {
    "native": ("max_side", "max_pixels"),
    "area": ("min_pixels", "max_pixels"),
    "tiles": ("max_tiles",),
    "padded": ("max_height", "max_width"),
}
_KEYS_OF_SIZE = {"longest_edge": "max_side", "height": "max_height", "width": "max_width"}


def overridden(section: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the section `image` with the arguments of a call that change the size of images.

    Args:
        section: the section of the training config.
        given: keys of `SoloMonolithImagesKwargs`. Sizes: `max_tiles`, `min_pixels`, `max_pixels`, and `size` with the
            keys `min_pixels`, `max_pixels`, `longest_edge`, or `height` and `width`.

    Raises:
        ValueError: the geometry does not have this limit, or an argument asks for something that is not done in
            training.
    """
    given = {name: value for name, value in given.items() if value is not None}
    size = given.pop("size", {})
    if not isinstance(size, Mapping):
        raise ValueError(f"size is {size!r}; it must be a dictionary")
    limits: dict[str, Any] = {
        name: given.pop(name) for name in ("max_tiles", "min_pixels", "max_pixels") if name in given
    }
    limits |= {str(_KEYS_OF_SIZE.get(name, name)): value for name, value in size.items() if value is not None}
    known = _LIMITS[section["geometry"]]
    for name, value in limits.items():
        if name not in known:
            raise ValueError(f"this model's images have no {name}; their size is limited by {', '.join(known)}")
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    # One bound moves the other where they would cross.
    if "min_pixels" not in limits and (section.get("min_pixels") or 0) > limits.get("max_pixels", math.inf):
        limits["min_pixels"] = limits["max_pixels"]
    if "max_pixels" not in limits and (section.get("max_pixels") or math.inf) < limits.get("min_pixels", 0):
        limits["max_pixels"] = limits["min_pixels"]
    for name, value in given.items():
        if name in _DONE and value != (done := _DONE[name](section)):
            raise ValueError(f"{name}={value!r} is not what this model was trained with, {name}={done!r}")
        if name not in _DONE:
            raise ValueError(f"{name}={value!r} has no meaning for this model's images")
    return {**section, **limits}


# What happens to every image. Saying so changes nothing.
_DONE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "do_resize": lambda image: True,
    "do_convert_rgb": lambda image: True,
    "do_rescale": lambda image: True,
    "do_normalize": lambda image: True,
    "do_center_crop": lambda image: False,
    "rescale_factor": lambda image: 1 / 255,
    "image_mean": lambda image: list(image["mean"]),
    "image_std": lambda image: list(image["std"]),
    "resample": lambda image: _FILTERS[image["resample"]],
    "device": lambda image: "cpu",
    "return_tensors": lambda image: None,
}


class SoloMonolithImageProcessor(BaseImageProcessor):
    """Turns images into patches.

    Args:
        image: the section of the config: geometry, patch_size, resample, mean, std, and so on.
        form: what the model's code takes; see `preprocess`.
        inner_size: side of the patches of the form `grid_hw`, in pixels.
    """

    model_input_names = ("pixel_values", "patches_grid")
    valid_kwargs = SoloMonolithImagesKwargs

    def __init__(
        self,
        image: dict[str, Any] | None = None,
        form: str = "patches",
        inner_size: int | None = None,
        **kwargs: Any,
    ):
        if image is None:
            raise ValueError("the image processor of this model needs the section `image` of its config")
        names = kwargs.keys() & SoloMonolithImagesKwargs.__annotations__.keys()
        self.image = overridden(image, {name: kwargs.pop(name) for name in names})
        super().__init__(**kwargs)
        self.form, self.inner_size = form, inner_size

    def preprocess(
        self,
        images: Any,
        images_per_text: list[int] | None = None,
        return_tensors: str | None = None,
        do_resize: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Cuts images into patches.

        Args:
            images: one or more Pillow images, arrays [height, width, 3], paths or URLs.
            images_per_text: number of images of each text, in order.
            return_tensors: "pt" or "np"; NumPy arrays by default.
            do_resize: False refuses images that would have to be resized.
            kwargs: see `overridden`.

        Returns:
            image_grids_of: tiles, rows and columns of every image, as a list. And normalised float32 pixels, in the
            form that the model's code takes:

            patches         pixel_values [n, p*p*3], patches of all images, channel by channel, and their places
                            patches_grid, int64 [n, 2]: row and column of each patch in its image or tile
            vision_patches  vision_patches [n, p*p*3], the same (SOLO)
            channels_last   pixel_values [1, n, p*p*3], with the channels of a pixel side by side (Fuyu)
            tiles           pixel_values [tiles, 3, side, side], and image_flags, int64 [tiles, 1], all 1 (InternVL)
            images          images, a list of [3, height, width] (EVE)
            position_ids    pixel_values [images, slots, p*p*3], with the channels of a pixel side by side, and column
                            and row of each patch, image_position_ids, int64 [images, slots, 2]; -1 where an image has
                            fewer patches than another (Gemma 4)
            grid_hw         pixel_values [n, 3*i*i], patches of side `inner_size` of all images, and their rows and
                            columns image_grid_hw, int64 [images, 2] (NEO)

        Raises:
            ValueError: there are no images, or an argument cannot be honoured; see `overridden`.
        """
        config = overridden(self.image, kwargs)
        if isinstance(images, list | tuple) and not images:
            raise ValueError("images is empty")
        found = [self.open(image) for image in make_flat_list_of_images(self.fetch_images(images))]
        shares = [count for count in images_per_text or [1] * len(found) for _ in range(count)]
        pairs = list(zip(found, shares, strict=True))
        wrong = [image.size for image, share in pairs if not fits(*image.size, config, share)]
        if do_resize is False and wrong:
            raise ValueError(f"do_resize is False, but images of {wrong} (width, height) must be resized")
        if self.form in ("tiles", "images"):
            wholes = [self._wholes(image, share, config) for image, share in pairs]
            feature = self._whole(wholes, return_tensors)
        else:
            cut = [self.cut(image, share, config) for image, share in pairs]
            pixels = self.normalised(np.concatenate([pixels for pixels, _ in cut]))
            feature = self._in_patches(pixels, np.concatenate([places for _, places in cut]), return_tensors)
        grids = [self.grid(*image.size, share, config) for image, share in pairs]
        if self.form == "position_ids":
            feature = self._in_slots([self.cut(image, share, config) for image, share in pairs], return_tensors)
        if self.form == "grid_hw":
            feature = self._in_inner_patches(feature["pixel_values"], grids, return_tensors)
        feature["image_grids_of"] = grids
        return feature

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens images that are named by paths, URLs, data URIs or base64, one or nested lists of them.

        transformers' `load_image` would drop transparency and the values of deep grey, and rotate every image.
        """
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str):
            return _opened(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def _in_patches(self, pixels: np.ndarray, places: np.ndarray, return_tensors: str | None) -> BatchFeature:
        if self.form == "vision_patches":
            data = {"vision_patches": pixels}
        elif self.form == "channels_last":
            by_pixel = pixels.reshape(len(pixels), 3, -1).transpose(0, 2, 1)
            data = {"pixel_values": np.ascontiguousarray(by_pixel).reshape(1, *pixels.shape)}
        else:
            data = {"pixel_values": pixels, "patches_grid": places.astype(np.int64)}
        return BatchFeature(data, tensor_type=return_tensors)

    def _in_slots(self, cut: list[tuple[np.ndarray, np.ndarray]], return_tensors: str | None) -> BatchFeature:
        slots = max(len(pixels) for pixels, _ in cut)
        found = np.zeros((len(cut), slots, cut[0][0].shape[1]), np.float32)
        places = np.full((len(cut), slots, 2), -1, np.int64)
        for number, (pixels, grid) in enumerate(cut):
            by_pixel = self.normalised(pixels).reshape(len(pixels), 3, -1).transpose(0, 2, 1)
            found[number, : len(pixels)] = by_pixel.reshape(pixels.shape)
            places[number, : len(pixels)] = grid[:, ::-1]
        return BatchFeature({"pixel_values": found, "image_position_ids": places}, tensor_type=return_tensors)

    def _in_inner_patches(self, pixels: Any, grids: list[Grid], return_tensors: str | None) -> BatchFeature:
        side = self.inner_size or self.image["patch_size"]
        count = self.image["patch_size"] // side
        found, first = [], 0
        for grid in grids:
            whole = np.asarray(pixels[first : first + grid.rows * grid.columns])
            blocks = whole.reshape(grid.rows, grid.columns, 3, count, side, count, side)
            found.append(blocks.transpose(0, 3, 1, 5, 2, 4, 6).reshape(-1, 3 * side * side))
            first += grid.rows * grid.columns
        sizes = np.array([(count * grid.rows, count * grid.columns) for grid in grids], np.int64)
        return BatchFeature({"pixel_values": np.concatenate(found), "image_grid_hw": sizes}, tensor_type=return_tensors)

    def _whole(self, wholes: list[list[np.ndarray]], return_tensors: str | None) -> BatchFeature:
        channels = [whole.transpose(2, 0, 1) for of_image in wholes for whole in of_image]
        pixels = [self.normalised(each.reshape(1, -1)).reshape(each.shape) for each in channels]
        if self.form == "tiles":
            data = {"pixel_values": np.stack(pixels), "image_flags": np.ones((len(pixels), 1), np.int64)}
            return BatchFeature(data, tensor_type=return_tensors)
        # Of different sizes, so that they are not one tensor.
        return BatchFeature({"images": [BatchFeature({"x": each}, tensor_type=return_tensors)["x"] for each in pixels]})

    def open(self, image: Any) -> Image.Image:
        """Returns an RGB Pillow image, rotated by its EXIF orientation if training did so."""
        if not isinstance(image, Image.Image):
            array = np.asarray(image)
            channels_first = array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3)
            array = array.transpose(1, 2, 0) if channels_first else array
            if array.dtype != np.uint8:
                raise ValueError(f"an image array must have dtype uint8, not {array.dtype}")
            image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
        turned = ImageOps.exif_transpose(image) if self.image["exif"] == "apply" else image
        return to_rgb(turned, self.image.get("background", "published"), image)

    def grid(self, width: int, height: int, images: int = 1, config: dict[str, Any] | None = None) -> Grid:
        """Returns the grid of an image of this size whose text has `images` images."""
        config = self.image if config is None else config
        if config["geometry"] == "tiles":
            columns, rows = tile_grid(width, height, config, images)
            side = config["tile_size"] // config["patch_size"]
            return Grid(columns * rows + (config["thumbnail"] and columns * rows > 1), side, side)
        wide, high = resized(width, height, config, images)
        return Grid(1, -(-high // config["patch_size"]), -(-wide // config["patch_size"]))

    def _wholes(self, image: Image.Image, images: int, config: dict[str, Any]) -> list[np.ndarray]:
        """Returns the tiles of an image, or the resized image: uint8 [height, width, 3]."""
        if config["geometry"] == "tiles":
            return self._tiles(image, *tile_grid(*image.size, config, images))
        return [self._filled(self._resize(image, *resized(*image.size, config, images)))]

    def cut(self, image: Image.Image, images: int, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns raw pixels uint8 [n, p*p*3] and places [n, 2]."""
        wholes = self._wholes(image, images, config)
        grid = self.grid(*image.size, images, config)
        by_column = config["patch_order"] == "columns"
        places = np.indices((grid.rows, grid.columns)).transpose((2, 1, 0) if by_column else (1, 2, 0)).reshape(-1, 2)
        pixels = np.concatenate([patches_of(whole, config["patch_size"], by_column) for whole in wholes])
        places = np.tile(places, (len(wholes), 1))
        if config.get("markers"):
            pixels, places = with_markers(pixels, places, grid)
        return pixels, places

    def normalised(self, raw: np.ndarray) -> np.ndarray:
        """Returns (value / 255 - mean) / std, float32."""
        mean, std = (np.repeat(np.float32(self.image[key]), raw.shape[1] // 3) for key in ("mean", "std"))
        found = (raw.astype(np.float32) / np.float32(255) - mean) / std
        return found.astype(np.float16).astype(np.float32) if self.image["stored_as_float16"] else found

    def _resize(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        # Each axis by itself, rows first: from 12.2 on, Pillow chooses an order, on which the pixels depend.
        for size in ((width, image.height), (width, height)):
            image = image if image.size == size else image.resize(size, _FILTERS[self.image["resample"]])
        return np.asarray(image)

    def _tiles(self, image: Image.Image, columns: int, rows: int) -> list[np.ndarray]:
        side = self.image["tile_size"]
        whole = self._resize(image, side * columns, side * rows)
        strips = [whole[side * row : side * (row + 1)] for row in range(rows)]
        found = [strip[:, side * column : side * (column + 1)] for strip in strips for column in range(columns)]
        return [*found, self._resize(image, side, side)] if self.image["thumbnail"] and len(found) > 1 else found

    def _filled(self, pixels: np.ndarray) -> np.ndarray:
        below, right = (-side % self.image["patch_size"] for side in pixels.shape[:2])
        return np.pad(pixels, ((0, below), (0, right), (0, 0)), constant_values=_PADDING)


def _opened(source: str) -> Image.Image:
    """Opens an image as its file has it: a web address, a path, or a data URI or other base64."""
    if source.startswith(("http://", "https://")):
        answer = httpx.get(source, follow_redirects=True)
        return Image.open(io.BytesIO(answer.raise_for_status().content))
    if os.path.isfile(source):
        return Image.open(source)
    try:
        text = source.split(",", 1)[1] if source.startswith("data:image/") else source
        return Image.open(io.BytesIO(base64.b64decode(text)))
    except (ValueError, IndexError, OSError) as error:
        shown = source if len(source) <= 200 else f"{source[:100]}... ({len(source):,} characters)"
        raise ValueError(f"{shown!r} is no file, no web address, and no image in base64: {error}") from None


def to_rgb(image: Image.Image, background: str, file: Image.Image) -> Image.Image:
    """Returns an RGB image, with transparent pixels composited on `background` and deep grey reduced to 8 bits.

    "published" returns `image.convert("RGB")`; "neo" and "neo_unify" do too, except for some RGBA images. `file` is the
    image as it was opened: its format and its tags say what the values of deep grey mean.
    """
    if background in ("published", "neo", "neo_unify"):
        least, most = image.getchannel("A").getextrema() if image.mode == "RGBA" else (255, 255)
        # NEO: some pixels are fully transparent, and some are not.
        on_white = image.mode == "RGBA" and (background == "neo_unify" or (background == "neo" and least == 0 != most))
        if not on_white:
            return image.convert("RGB")
        background = "white"
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image, getattr(file, "format", None), getattr(file, "tag_v2", {}))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    found = Image.new("RGB", layer.size, ImageColor.getrgb(background))
    found.paste(layer, mask=layer.getchannel("A"))
    return found


def _eight_bits(image: Image.Image, form: str | None, tags: Mapping[int, Any]) -> Image.Image:
    """Returns grey of more than 8 bits as L, or as LA if one of its values means transparent."""
    values, transparent = np.asarray(image), image.info.get("transparency")
    if image.mode.startswith("I;16"):
        found = values >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)
    elif form == "PPM" and image.mode == "I":  # Pillow has scaled it to 16 bits
        found = values >> 8
    else:
        least, most = values.min(), values.max()
        if not (least >= 0 and most <= 255):
            raise ValueError(
                f"an image has pixels from {least:g} to {most:g}, of which none is known to be black or white; 0 to 1"
                " and 0 to 255 can be read"
            )
        found = np.rint(values * (255.0 if values.dtype.kind == "f" and most <= 1 else 1.0))
    found = found.astype(np.uint8)
    grey = Image.fromarray(255 - found if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else found)
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", [grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))])


def patches_of(pixels: np.ndarray, side: int, by_column: bool) -> np.ndarray:
    """Cuts pixels [height, width, 3] into patches uint8 [n, p*p*3], whose values are ordered (channel, y, x)."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    blocks = pixels.reshape(rows, side, columns, side, 3)
    return blocks.transpose((2, 0, 4, 1, 3) if by_column else (0, 2, 4, 1, 3)).reshape(rows * columns, -1)


def with_markers(pixels: np.ndarray, places: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Inserts the learned tokens before the image (row -1) and after each row (row -2), without pixels."""
    is_patch = np.full((grid.rows, grid.columns + 1), True)
    is_patch[:, -1] = False
    is_patch = np.concatenate([[False], is_patch.ravel()])
    all_pixels = np.zeros((len(is_patch), pixels.shape[1]), pixels.dtype)
    all_places = np.full((len(is_patch), 2), (ROW_MARKER, 0))
    all_pixels[is_patch], all_places[is_patch], all_places[0] = pixels, places, (BEGIN_MARKER, 0)
    return all_pixels, all_places


def resized(width: int, height: int, config: dict[str, Any], images: int = 1) -> tuple[int, int]:
    """Returns the width and height to which an untiled image is scaled, if its text has `images` images."""
    rule = {"native": _native, "area": _area, "padded": _padded}[config["geometry"]]
    least = 1 if config["geometry"] == "padded" else config["patch_size"]
    if config.get("share_pixels") and images > 1:
        most = max(2 * config["max_pixels"] // images, config.get("min_pixels") or 0)
        config = {**config, "max_pixels": most}
    wide, high = rule(width, height, config)
    return max(wide, least), max(high, least)


def fits(width: int, height: int, config: dict[str, Any], images: int = 1) -> bool:
    """Returns whether an image of this size is cut as it is."""
    if config["geometry"] == "tiles":
        return width == height == config["tile_size"]
    return (width, height) == resized(width, height, config, images)


def tile_grid(width: int, height: int, config: dict[str, Any], images: int = 1) -> tuple[int, int]:
    """Returns the columns and rows of tiles: the grid whose aspect ratio is closest to the image's.

    Among equally close grids it is the one with the fewest tiles, unless a later one has less than twice the pixels of
    the image.
    """
    most = config["max_tiles"]
    most = max(most // images, 1) if config.get("share_tiles") else most
    pairs = [(i, j) for i in range(1, most + 1) for j in range(1, most // i + 1) if i * j >= config["min_tiles"]]
    best, least = (1, 1), math.inf
    for columns, rows in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair)):
        difference = abs(width / height - columns / rows)
        large = width * height > 0.5 * config["tile_size"] ** 2 * columns * rows
        if difference < least or (difference == least and large):
            best, least = (columns, rows), difference
    return best


def _native(width: int, height: int, config: dict[str, Any]) -> tuple[int, int]:
    """Rounds the longer side up to whole patches and caps it; the shorter side keeps the aspect ratio, rounded up."""
    patch, most = config["patch_size"], config.get("max_pixels")
    longer, shorter = max(width, height), min(width, height)
    long_side = min(-(-longer // patch) * patch, config["max_side"])
    short_side = -(-int(long_side * shorter / longer) // patch) * patch
    if most is not None and long_side * short_side / most > 1:
        factor = math.sqrt(long_side * short_side / most)
        long_side, short_side = (int(side / factor / patch) * patch for side in (long_side, short_side))
    return (long_side, short_side) if width >= height else (short_side, long_side)


def _area(width: int, height: int, config: dict[str, Any]) -> tuple[int, int]:
    """Scales to between `min_pixels` and `max_pixels`; `rounding` says how sides become whole patches."""
    patch, pixels = config["patch_size"], width * height
    least, most = config.get("min_pixels") or 0, config.get("max_pixels") or math.inf
    if config["rounding"] == "within":
        sides = [max(round(side / patch), 1) * patch for side in (width, height)]
        if sides[0] * sides[1] > most:
            shrink = math.sqrt(pixels / most)
            sides = [math.floor(side / shrink / patch) * patch for side in (width, height)]
        elif sides[0] * sides[1] < least:
            factor = math.sqrt(least / pixels)
            sides = [math.ceil(side * factor / patch) * patch for side in (width, height)]
        return sides[0], sides[1]
    bound = most if pixels > most else max(pixels, least)
    if config["rounding"] == "down":
        factor = math.sqrt(bound / pixels)
        wide, high = (math.floor(factor * side / patch) for side in (width, height))
        longest = math.floor(bound / patch**2)
        if wide == 0:
            wide, high = 1, min(height // width, longest)
        elif high == 0:
            wide, high = min(width // height, longest), 1
        return wide * patch, high * patch
    factor = 1.0 if bound == pixels else math.sqrt(pixels) / math.sqrt(bound)
    whole = math.ceil if config["rounding"] == "up" else round
    return whole(width / factor / patch) * patch, whole(height / factor / patch) * patch


def _padded(width: int, height: int, config: dict[str, Any]) -> tuple[int, int]:
    """Scales larger images down to `max_width` x `max_height`, truncated to whole pixels."""
    if width <= config["max_width"] and height <= config["max_height"]:
        return width, height
    scale = min(config["max_height"] / height, config["max_width"] / width)
    return int(width * scale), int(height * scale)


__all__ = ["SoloMonolithImageProcessor"]
