"""TensorFlow Datasets, read from ArrayRecord files without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image as PillowImage

from solo.config import ConfigError, nearest
from solo.data.readers.registry import Examples, Unreadable, reader
from solo.data.record import Image, Record, Turn, encode_png


@reader("tfds")
def tfds(name: str, split: str, image: str = "image", text: str = "label", data_dir: str | None = None) -> Examples:
    """Yields captions: an image feature and a text feature of every example, in the dataset's order.

    The dataset must have been prepared with `file_format="array_record"`. The text feature is a string, or a class
    label, which becomes its name. Stored image files are not decoded.
    """
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
        features = builder.info.features
        for option, feature in (("image", image), ("text", text)):
            if feature not in features:
                known = sorted(features)
                hint = nearest(feature, known) or f"; features: {known}"
                raise ConfigError(f"reader 'tfds': option {option!r}: {name} has no feature {feature!r}{hint}")
        stored = isinstance(features[image], tensorflow_datasets.features.Image)
        skip = {image: tensorflow_datasets.decode.SkipDecoding()} if stored else None
        source = builder.as_data_source(split, decoders=skip)
    except ConfigError:
        raise
    except Exception as error:
        # TFDS has separate error classes for an unknown dataset, version, split, file format and folder.
        raise ConfigError(f"reader 'tfds': cannot open {name}, split {split}: {str(error)[:300]}") from error
    names = getattr(features[text], "int2str", str)
    for number in range(len(source)):
        example_id = f"{name}/{split}/{number}"
        try:
            example = source[number]
            yield Record(example_id, (Turn("text", (_image(example[image]), _text(example[text], names))),))
        except (ValueError, TypeError, OSError) as error:
            yield Unreadable(example_id, str(error))


def _image(value: Any) -> Image:
    """Converts a feature: an encoded file, or uint8 [height, width, C] with C = 1, 3 or 4."""
    if isinstance(value, bytes):
        return Image(value)
    pixels = np.asarray(value)
    return encode_png(PillowImage.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def _text(value: Any, names: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else str(names(int(value)))
