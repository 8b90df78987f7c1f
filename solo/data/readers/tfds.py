"""TensorFlow Datasets, read from ArrayRecord files without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from solo.config import ConfigError, nearest
from solo.data.readers.captions import Captions, caption_records
from solo.data.readers.class_names import ClassNames, read_class_names
from solo.data.readers.listing import list_folder
from solo.data.readers.pixels import check_pixels, encode_pixels
from solo.data.readers.registry import Examples, Part, Reader, Unreadable, reader
from solo.data.record import Image, Place
from solo.files import is_remote

_WHAT = "reader 'tfds'"
_LIST = 1  # dimensions added by a list


@reader("tfds")
@dataclass(frozen=True)
class TensorFlowDataset(Reader):
    """Captions: an image and a text from every example of a split, in dataset order.

    The dataset must have been prepared with `file_format="array_record"`. Encoded images are not decoded.

    name, data_dir  the dataset's name and folder, as for `tfds.builder`; or
    path            the folder of a prepared version, which contains `dataset_info.json` and `features.json`
    split           the split, such as `train` or `train[:10%]`; optional if there is only one
    image           an image feature, or uint8, uint16 or bool pixels [H, W], [H, W, 1, 3 or 4]; or a list of these.
                    A feature inside a dict or list is written `faces/image`
    value_range     minimum and maximum value of pixels of another type, such as [0.0, 1.0]
    text            a text, a list of texts, or a class label, which becomes the class name. Label -1 has no name
    captions        each: one record per text of a list; all: one record, one text per line; first: the first text
    names           class names, if the dataset has none: a list, or a file as for reader `folder`
    """

    name: str | None = None
    split: str | None = None
    image: str = "image"
    text: str = "label"
    data_dir: str | None = None
    path: str | None = None
    captions: Captions = "each"
    names: str | tuple[str, ...] | None = None
    value_range: tuple[float, float] | None = None

    def parts(self, size: int, limit: int | None) -> Iterator[Part]:
        """Splits the shards into ranges of examples."""
        dataset = _Dataset(self)
        for number, shard in enumerate(dataset.shards):
            if not is_remote(shard.filename) and not os.path.isfile(shard.filename):
                raise ConfigError(f"{_WHAT}: {shard.filename} does not exist")
            before = sum(shard.take for shard in dataset.shards[:number])
            for start in range(0, shard.take, size):
                stop = min(start + size, shard.take)
                if limit is not None and before + start >= limit:
                    return
                first = shard.skip + start
                name = f"{os.path.basename(shard.filename)}:{first + 1}-{shard.skip + stop}"
                yield Part(name, (shard.filename,), (before + start, before + stop, first))

    def read(self, part: Part) -> Examples:
        """Yields the examples of a part. Its span is (first, last + 1) in the split, and the first in the shard."""
        dataset = _Dataset(self)
        start, stop, first = part.span
        for number in range(start, stop):
            place = Place(part.files[0], first + number - start + 1)
            example_id = f"{dataset.name}/{dataset.split}/{number}"
            try:
                image, text = dataset.read(number)
                images = [_image(value, self.value_range) for value in (image if dataset.image_list else [image])]
                texts = [dataset.caption(value) for value in (text if dataset.text_list else [text])]
                yield from caption_records(example_id, images, texts, self.captions, place)
            except ValueError as error:
                yield Unreadable(example_id, str(error), place)


class _Dataset:
    """An opened split with its image and text features."""

    def __init__(self, options: TensorFlowDataset) -> None:
        import tensorflow_datasets as tfds

        builder = _open(options)
        self.name = options.name or builder.name
        self.split = options.split or _only_split(builder)
        try:
            info = builder.info.splits[self.split]
            self.shards = [shard for shard in info.file_instructions if shard.take]
            self._source = builder.as_data_source(
                self.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except Exception as error:  # TFDS has separate classes for an unknown split, file format and subset
            if builder.info.file_format not in (None, tfds.core.FileFormat.ARRAY_RECORD):
                raise ConfigError(
                    f"{_WHAT}: {self.name} was prepared as {builder.info.file_format.value}, which only TensorFlow"
                    " reads; prepare it with file_format='array_record', or convert it: tfds convert_format"
                ) from None
            raise ConfigError(
                f"{_WHAT}: cannot open {self.name}, split {self.split}: {str(error)[:300]};"
                f" splits: {sorted(builder.info.splits)}"
            ) from error
        self._features = builder.info.features
        self._paths = (options.image.split("/"), options.text.split("/"))
        image, image_depth = self._find("image", options.image)
        text, text_depth = self._find("text", options.text)
        self.image_list, stored = _check_image(image, image_depth, options)
        self.text_list, self._names = _check_text(text, text_depth, options)
        self._decoders = _decoders(self._features, None if stored else self._paths[0])

    def _find(self, option: str, path: str) -> tuple[Any, int]:
        """Returns a feature and the number of lists around it."""
        import tensorflow_datasets as tfds

        found, depth = self._features, 0
        for name in path.split("/"):
            if isinstance(found, tfds.features.Sequence):
                found, depth = found.feature, depth + 1
            known = sorted(found.keys()) if isinstance(found, tfds.features.FeaturesDict) else []
            if name not in known:
                hint = nearest(name, known) or f"; features: {known}"
                raise ConfigError(f"{_WHAT}: option {option!r}: {self.name} has no feature {path!r}{hint}")
            found = found[name]
        if isinstance(found, tfds.features.Sequence):
            found, depth = found.feature, depth + 1
        if isinstance(found, tfds.features.FeaturesDict):
            inside = [f"{path}/{name}" for name in sorted(found.keys())]
            raise ConfigError(
                f"{_WHAT}: option {option!r}: feature {path!r} holds several features; name one: {inside}"
            )
        return found, depth

    def read(self, number: int) -> tuple[Any, Any]:
        """Returns the image and the text of an example. Raises ValueError if the example cannot be read."""
        try:
            data = self._source[number]
        except (RuntimeError, OSError, IndexError) as error:
            raise ValueError(f"the shard is damaged: {error}") from None
        if not data:
            raise ValueError("the shard is damaged: it holds fewer examples than dataset_info.json says")
        try:
            example = self._features.deserialize_example_np(data, decoders=self._decoders)
            image, text = (_value(example, path) for path in self._paths)
        except Exception as error:  # protobuf, NumPy and TFDS have their own classes
            raise ValueError(f"the example does not have the features of features.json: {str(error)[:200]}") from None
        return image, text

    def caption(self, value: Any) -> str:
        """Returns a text, or the name of a label. Raises ValueError if there is none."""
        if self._names is None:
            try:
                return value.decode() if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError as error:
                raise ValueError(f"its text is not UTF-8: {error.reason} at byte {error.start}") from None
        label = int(value)
        if label < 0:
            raise ValueError(f"it has no label ({label}), as in splits without labels")
        name = self._names.find(str(label), label, len(self._names.in_order))
        if name is None:
            raise ValueError(f"label {label} has no name; there are {len(self._names.in_order)} classes")
        return name


def _open(options: TensorFlowDataset) -> Any:
    import tensorflow_datasets as tfds

    if (options.name is None) == (options.path is None):
        raise ConfigError(f"{_WHAT}: set either name (with data_dir) or path")
    if options.path is not None and not is_remote(options.path) and os.path.isdir(options.path):
        # On a named pipe, TFDS would block until a writer appears.
        for entry in list_folder(options.path, "", _WHAT):
            if entry.fault:
                raise ConfigError(f"{_WHAT}: {os.path.join(options.path, entry.name)}: {entry.fault}")
    try:
        if options.path is not None:
            return tfds.builder_from_directory(options.path)
        return tfds.builder(options.name, data_dir=options.data_dir)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_WHAT}: {options.name or options.path} has features that TFDS opens only with {error.name}"
        ) from None
    except Exception as error:  # TFDS has separate classes for an unknown dataset, version and folder
        raise ConfigError(f"{_WHAT}: cannot open {options.name or options.path}: {str(error)[:300]}") from error


def _only_split(builder: Any) -> str:
    splits = sorted(builder.info.splits)
    if len(splits) != 1:
        raise ConfigError(f"{_WHAT}: {builder.name} has splits {splits}; name one with option split")
    return str(splits[0])


def _check_image(feature: Any, depth: int, options: TensorFlowDataset) -> tuple[bool, bool]:
    """Returns whether the feature is a list of images, and whether the images are encoded files."""
    import numpy as np
    import tensorflow_datasets as tfds

    what = f"{_WHAT}: option 'image': feature {options.image!r}"
    if isinstance(feature, tfds.features.Image):
        if np.dtype(feature.np_dtype).kind == "f":
            raise ConfigError(f"{what} is an image of floats, whose range is unknown and which no image file holds")
        dimensions, stored = depth, True
    elif type(feature) is tfds.features.Tensor:
        if len(feature.shape) + depth not in (2, 3, 4):
            raise ConfigError(f"{what} has shape {feature.shape}; an image is [height, width, 1, 3 or 4]")
        check_pixels(feature.np_dtype, options.value_range, what)
        dimensions, stored = depth + max(0, len(feature.shape) - 3), False
    else:
        raise ConfigError(f"{what} is a {type(feature).__name__}, not an image")
    if dimensions > _LIST:
        raise ConfigError(f"{what} is a list of lists of images")
    return dimensions == _LIST, stored


def _check_text(feature: Any, depth: int, options: TensorFlowDataset) -> tuple[bool, ClassNames | None]:
    """Returns whether the feature is a list, and the class names if it is a label."""
    import numpy as np
    import tensorflow_datasets as tfds

    what = f"{_WHAT}: option 'text': feature {options.text!r}"
    lists = depth + len(feature.shape)
    if lists > _LIST:
        raise ConfigError(f"{what} is a list of lists")
    kind = np.dtype(feature.np_dtype)
    if isinstance(feature, tfds.features.Text) or kind.kind in "OSU":
        return lists == _LIST, None
    if options.names is not None and kind.kind in "iu":
        return lists == _LIST, read_class_names(options.names, _WHAT)
    if not isinstance(feature, tfds.features.ClassLabel):
        raise ConfigError(f"{what} holds {kind.name} values, neither texts nor labels with names")
    if feature.names == [str(number) for number in range(feature.num_classes or 0)]:
        raise ConfigError(
            f"{what} is a label whose {feature.num_classes} classes have no names; set option names to a list of names,"
            " or to a file with one name per line"
        )
    return lists == _LIST, ClassNames({}, tuple(feature.names))


def _decoders(features: Any, decoded: list[str] | None) -> dict[str, Any]:
    """Returns decoders that leave every feature in its stored form, except the one at a path."""
    import tensorflow_datasets as tfds

    class Stored(tfds.decode.SkipDecoding):  # SkipDecoding does not handle lists
        def decode_batch_example_np(self, serialized_example: Any) -> Any:
            return serialized_example

        decode_ragged_example_np = decode_batch_example_np

    def skip(feature: Any, path: list[str] | None) -> Any:
        if isinstance(feature, tfds.features.Sequence):
            feature = feature.feature
        if isinstance(feature, tfds.features.FeaturesDict):
            inside = {name: path[1:] if path and path[0] == name else None for name in feature.keys()}  # noqa: SIM118
            return {name: skip(feature[name], inside[name]) for name in inside}
        return None if path == [] else Stored()

    found: dict[str, Any] = skip(features, decoded)
    return found


def _value(example: Any, path: list[str]) -> Any:
    for name in path:
        example = example[name]
    return example


def _image(value: Any, value_range: tuple[float, float] | None) -> Image:
    return Image(bytes(value)) if isinstance(value, bytes) else encode_pixels(value, value_range)
