"""Captions in the formats of COCO: its own annotation files, Karpathy's splits, and lists of pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from solo.config import ConfigError
from solo.data.readers.annotations import BLANK, Annotated, AnnotationReader, Keys, mappings
from solo.data.readers.captions import Captions, caption_records
from solo.data.readers.examples import record_id
from solo.data.readers.paths import Paths
from solo.data.readers.registry import Examples, Unreadable, reader
from solo.data.readers.wording import kind, shown
from solo.data.record import Image, Place

_PAIR_IMAGES = ("image", "file_name", "image_path")
_PAIR_CAPTIONS = ("caption", "captions", "text")
_OTHER_TASKS = {
    "keypoints": "keypoints",
    "segments_info": "panoptic segments",
    "segmentation": "segments",
    "bbox": "boxes",
    "question": "questions; use reader 'vqa'",
}


@reader("coco")
@dataclass(frozen=True)
class CocoCaptions(AnnotationReader):
    """Image captions.

    path      `captions_train2017.json`: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`;
              Karpathy's `dataset_coco.json`: `{"images": [{"filename", "split", "sentences": [{"raw"}]}]}`;
              or pairs in BLIP's format, in a list or one per line: `{"image": "a.jpg", "caption": "..." or ["...",
              "..."]}`; the key `text` is equivalent to `caption`
    images    the folder that file names are relative to
    captions  each: one record per caption; all: one record per image, one caption per line; first: the first caption
    split     split of Karpathy's file: train, restval, val or test; `train,restval` for both
    """

    path: Paths
    images: str = "."
    captions: Captions = "each"
    split: str | None = None

    what = "reader 'coco'"
    known = frozenset(
        (
            *("id", "image_id", "caption", "captions", "image", "file_name", "filename", "filepath", "sentences"),
            *("split", "width", "height", "license", "coco_url", "flickr_url", "date_captured", "cocoid", "imgid"),
            *("sentids", "image_path", "text"),
        )
    )

    def examples(self, path: str, content: Any, keys: Keys) -> Iterator[Annotated]:
        """Yields the images with their captions, then the captions that have no image."""
        if isinstance(content, list):
            return self._pairs(content, keys)
        if not isinstance(content, dict) or "images" not in content:
            raise ConfigError(f"{self.what}: {path} has no 'images'; it is not an annotation file of COCO captions")
        images = mappings(content, "images", path, self.what)
        if any(isinstance(image, dict) and "sentences" in image for image in images[:10]):
            return self._karpathy(path, images, keys)
        if self.split is not None:
            raise ConfigError(f"{self.what}: {path} has no splits; leave option split out")
        return self._coco(path, images, _captions(path, content, self.what), keys)

    def records(self, example: Annotated, image: Image, place: Place) -> Examples:
        """Yields the records of an image."""
        yield from caption_records(example.id, [image], example.texts, self.captions, place)

    def _coco(self, path: str, images: list[Any], captions: list[Any], keys: Keys) -> Iterator[Annotated]:
        by_image: dict[Any, list[str]] = {}
        lost: list[Annotated] = []
        ids = {image.get("id") for image in images if isinstance(image, dict) and _is_id(image.get("id"))}
        for line, found in enumerate(captions, start=1):
            fault = _fault(found, "image_id", ids)
            if fault:
                name = found.get("id", line) if isinstance(found, dict) else line
                lost.append(Annotated(f"annotation {name}", line, fault=f"annotation {line}: {fault}"))
                continue
            keys.check(found, line)
            by_image.setdefault(found["image_id"], []).append(found["caption"])
        for line, image in enumerate(images, start=1):
            if (
                not isinstance(image, dict)
                or not isinstance(image.get("file_name"), str)
                or not _is_id(image.get("id"))
            ):
                yield Annotated(
                    f"{os.path.basename(path)}:{line}", line, fault="an image must have 'id' and 'file_name'"
                )
                continue
            keys.check(image, line)
            name = record_id(image["id"], f"{os.path.basename(path)}:{line}")
            texts = tuple(by_image.get(image["id"], ()))
            yield Annotated(name, line, (self._file(image["file_name"]),), texts)
        yield from lost

    def _karpathy(self, path: str, images: list[Any], keys: Keys) -> Iterator[Annotated]:
        wanted = [name.strip() for name in self.split.split(",")] if self.split is not None else None
        splits = sorted({str(image["split"]) for image in images if isinstance(image, dict) and "split" in image})
        if wanted is None and len(splits) > 1:
            raise ConfigError(f"{self.what}: {path} has splits {splits}; name them with option split")
        if unknown := [name for name in wanted or () if name not in splits]:
            raise ConfigError(f"{self.what}: {path} has no split {unknown[0]!r}; splits: {splits}")
        for line, image in enumerate(images, start=1):
            try:
                if wanted is not None and image.get("split") not in wanted:
                    continue
                keys.check(image, line)
                file = os.path.join(image.get("filepath") or "", image["filename"])
                texts = tuple(_text(sentence["raw"]) for sentence in image["sentences"])
                yield Annotated(record_id(image.get("cocoid"), image["filename"]), line, (self._file(file),), texts)
            except (AttributeError, KeyError, TypeError, ValueError):
                yield Annotated(
                    f"{os.path.basename(path)}:{line}", line, fault="an image must have 'filename' and 'sentences'"
                )

    def _pairs(self, pairs: list[Any], keys: Keys) -> Iterator[Annotated]:
        for line, pair in enumerate(pairs, start=1):
            if pair is BLANK:
                continue
            if isinstance(pair, Unreadable):
                yield Annotated(pair.id, line, fault=pair.reason)
                continue
            try:
                keys.check(pair, line)
                file = _text(next((pair[key] for key in _PAIR_IMAGES if key in pair), None))
                found = next((pair[key] for key in _PAIR_CAPTIONS if key in pair), None)
                texts = tuple(map(_text, found if isinstance(found, list) else [found]))
                yield Annotated(record_id(pair.get("id"), f"{file}:{line}"), line, (self._file(file),), texts)
            except (AttributeError, TypeError, ValueError):
                yield Annotated(str(line), line, fault="a pair must have 'image', a file name, and 'caption' or 'text'")

    def _file(self, name: str) -> str:
        return os.path.join(self.images, name)


def _captions(path: str, content: dict[str, Any], what: str) -> list[Any]:
    """Returns the caption annotations. Raises ConfigError if the annotations are not captions."""
    if "annotations" not in content:
        raise ConfigError(f"{what}: {path} has no 'annotations', as the files of test splits")
    found = mappings(content, "annotations", path, what)
    first = next((annotation for annotation in found if isinstance(annotation, dict)), {})
    if "caption" not in first:
        task = next((task for key, task in _OTHER_TASKS.items() if key in first), f"{sorted(first)}")
        raise ConfigError(f"{what}: the annotations of {path} are not captions but {task}")
    return found


def _fault(annotation: Any, key: str, ids: set[Any]) -> str:
    if not isinstance(annotation, dict):
        return f"an annotation must be a mapping, not {kind(annotation)}"
    if not isinstance(annotation.get("caption"), str):
        return f"'caption' must be a text, not {shown(annotation.get('caption'))}"
    found = annotation.get(key)
    return "" if _is_id(found) and found in ids else f"no image has the id {shown(found)}"


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
