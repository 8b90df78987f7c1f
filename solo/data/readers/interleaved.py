"""Interleaved documents of texts and images: OBELICS, MMC4 and mOSCAR, as JSON lines, Parquet or WebDataset.

OBELICS  {"texts": ["Flour.", null], "images": [null, image]}, lists of equal length; one of the two is null at each
         index
MMC4     {"text_list": ["Flour."], "image_info": [{"image_name": "a.jpg", "matched_text_index": 0, "matched_sim": 0.3}]}
mOSCAR   {"text": [{"text_idx": "#0", "text": "Flour."}], "images": [{"img_idx": "#1", "url": ...}],
          "metadata": [{"node_order": "txt_#0|img_#1"}]}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from solo.config import ConfigError
from solo.data.readers import json_files
from solo.data.readers.examples import example_id
from solo.data.readers.file_kinds import file_kind
from solo.data.readers.image_files import load_image
from solo.data.readers.paths import READ_ERRORS, Paths, expand, open_bytes, stamp, suffix
from solo.data.readers.registry import Examples, Ignored, Omitted, Part, Reader, Unreadable, reader
from solo.data.readers.tables import SUFFIXES, Columns, open_table, table_files, table_parts, table_rows
from solo.data.readers.text_files import DamagedError, short_names
from solo.data.readers.webdataset import Sample, parse_member, samples
from solo.data.record import Image, Place, Record, Turn
from solo.files import is_remote

_WHAT = "reader 'interleaved'"
_SEPARATORS = {"OBELICS": "\n\n", "MMC4": " ", "mOSCAR": "\n\n"}
_READ = ("texts", "images", "text_list", "image_info", "text", "metadata", "id")
_QUIET = ("url", "similarity_matrix", "could_have_url_duplicate", "general_metadata")  # keys without training content
_TABLES = ("a Parquet file", "an Arrow file", "an Arrow stream")


@dataclass(frozen=True, slots=True)
class _Picture:
    """A document's reference to an image: a path, a URL, bytes, or None if the image is missing."""

    source: Any


@reader("interleaved")
@dataclass(frozen=True)
class Interleaved(Reader):
    """Interleaved documents. All text is trained on. The keys of each document determine its format.

    split           the split to read, if a folder of Parquet files has several
    images          folder of the images
    urls            a file that maps URLs to image files: JSON `{url: path}`, or JSON lines or Parquet with url and
                    path. Nothing is downloaded
    missing         what to do if an image cannot be read: refuse leaves the document out, drop leaves the image out
    position        MMC4: whether an image goes before or after the sentence that it matches
    min_similarity  MMC4: images with a lower matched_sim are left out
    separator       separator of adjacent texts; by default a space in MMC4, whose texts are sentences, and otherwise
                    an empty line
    """

    path: Paths
    split: str | None = None
    images: str = "."
    urls: str | None = None
    missing: Literal["refuse", "drop"] = "refuse"
    position: Literal["before", "after"] = "before"
    min_similarity: float | None = None
    separator: str | None = None

    def parts(self, size: int, limit: int | None) -> Iterable[Part]:
        """Returns the parts of tables, then one part per archive, then the parts of JSON files."""
        # Parts depend on the file of URLs: if it changes, they are made again.
        beside = () if self.urls is None else tuple(expand(self.urls, f"{_WHAT}: option 'urls'"))
        for part in self._parts(size, limit):
            yield replace(part, files=(*part.files, *beside))

    def _parts(self, size: int, limit: int | None) -> Iterator[Part]:
        files = [path for found in expand(self.path, _WHAT) for path in self._files(found)]
        kinds = {path: _kind(path) for path in files}
        yield from table_parts([path for path in files if kinds[path] == "table"], size, limit)
        archives = [path for path in files if kinds[path] == "archive"]
        yield from (Part(name, (path,)) for path, name in zip(archives, short_names(archives), strict=True))
        if texts := tuple(path for path in files if kinds[path] == "json"):
            yield from json_files.parts(texts, size, _WHAT)

    def _files(self, path: str) -> list[str]:
        is_folder = not is_remote(path) and os.path.isdir(path)
        return table_files(path, self.split, _WHAT) if is_folder else [path]

    def read(self, part: Part) -> Examples:
        """Yields one document per row or JSON value."""
        ignored: set[str] = set()
        for where, example in self._examples(replace(part, files=part.files[:1])):
            if isinstance(example, Unreadable | Ignored):
                yield example
                continue
            keys: list[str] = []
            omitted: list[str] = []
            name = example_id(example, f"{os.path.basename(where.file)}:{where.line}")
            try:
                if not isinstance(example, Mapping):
                    raise ValueError("it is not a JSON object")
                turn = Turn("text", self._content(example, keys.append, omitted.append))
            except ValueError as error:
                yield Unreadable.because(error, name, where)
                continue
            for key in keys:
                if key not in ignored:
                    ignored.add(key)
                    yield Ignored(key, where)
            yield from (Omitted(what, where) for what in omitted)
            yield Record(name, (turn,), where)

    def _examples(self, part: Part) -> Iterator[tuple[Place, Any]]:
        kind = _kind(part.files[0])
        return _table(part) if kind == "table" else _archive(part) if kind == "archive" else _json(part)

    def _content(
        self, example: Mapping[str, Any], ignored: Callable[[str], None], omitted: Callable[[str], None]
    ) -> tuple[str | Image, ...]:
        """Returns the texts and images of a document.

        Args:
            ignored: called with each key that is not read.
            omitted: called for each image that is left out.
        """
        layout = _format(example)
        if layout == "OBELICS":
            pieces = _obelics(example)
        elif layout == "MMC4":
            pieces = self._mmc4(example, omitted)
        elif layout == "mOSCAR":
            pieces = _moscar(example, omitted)
        else:
            raise ValueError(
                "it has the keys of neither OBELICS (texts, images), MMC4 (text_list) nor mOSCAR (text, metadata)"
            )
        for key in example:
            if key not in (*_READ, *_QUIET):
                ignored(key)
        separator = _SEPARATORS[layout] if self.separator is None else self.separator
        content: list[str | Image] = []
        for number, piece in enumerate(pieces, start=1):
            if isinstance(piece, _Picture):
                image = self._load(piece, number)
                if image is None:
                    omitted("images that cannot be read")
                else:
                    content.append(image)
            elif content and isinstance(content[-1], str):
                content[-1] += separator + piece
            elif piece:
                content.append(piece)
        if not any(isinstance(piece, str) and piece.strip() for piece in content):
            raise ValueError("it has no text")
        return tuple(content)

    def _load(self, picture: _Picture, number: int) -> Image | None:
        """Returns an image, or None if it cannot be read and `missing` is drop."""
        source = picture.source
        try:
            if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
                if self.urls is None:
                    raise ConfigError(f"{source} is a web address, and nothing is fetched: say where it is with `urls`")
                source = self._stored(source)
            if source is None:
                raise ValueError("it is missing")
            image = load_image(source, self.images)
            if not image.data:
                raise ValueError(f"the file is empty: {image.file or ''}")
            return image
        except ValueError as error:
            if self.missing == "drop" and not isinstance(error, ConfigError):
                return None
            raise ValueError(f"image at place {number}: {error}") from None

    def _stored(self, address: str) -> Any:
        """Returns the image file of a URL. Raises ValueError if the files of URLs do not list it."""
        for path in expand(self.urls or (), f"{_WHAT}: option 'urls'"):
            try:
                stored = _read_addresses(path, stamp(path)).get(address)
            except (OSError, DamagedError) as error:
                raise ConfigError(f"{_WHAT}: option 'urls': cannot read {path}: {error}") from None
            if stored is not None:
                return stored
        raise ValueError(f"{self.urls} does not list {address}")

    def _mmc4(self, example: Mapping[str, Any], omitted: Callable[[str], None]) -> list[str | _Picture]:
        texts = _texts(example["text_list"], "text_list")
        matched: list[list[_Picture]] = [[] for _ in texts]
        for number, entry in enumerate(_listed(example.get("image_info"), "image_info"), start=1):
            if not isinstance(entry, Mapping):
                raise ValueError(f"image {number} of image_info is not a mapping")
            index, similarity = entry.get("matched_text_index"), entry.get("matched_sim")
            if self.min_similarity is not None:
                if not isinstance(similarity, int | float):
                    raise ValueError(f"image {number} of image_info has no matched_sim")
                if similarity < self.min_similarity:
                    omitted(f"images with matched_sim below {self.min_similarity:g}")
                    continue
            if not isinstance(index, int) or not 0 <= index < len(texts):
                raise ValueError(f"image {number} of image_info has matched_text_index {index} for {len(texts)} texts")
            matched[index].append(_Picture(_mmc4_source(entry)))
        before = self.position == "before"
        pieces: list[str | _Picture] = []
        for text, pictures in zip(texts, matched, strict=True):
            pieces += [*pictures, text] if before else [text, *pictures]
        return pieces


# ------------------------------------------------------------------------------------------- formats


def _format(keys: Iterable[str]) -> str | None:
    names = set(keys)
    if "text_list" in names:
        return "MMC4"
    if {"texts", "images"} <= names:
        return "OBELICS"
    return "mOSCAR" if {"text", "metadata"} <= names else None


def _obelics(example: Mapping[str, Any]) -> list[str | _Picture]:
    texts, images = _listed(example["texts"], "texts"), _listed(example["images"], "images")
    if len(texts) != len(images):
        raise ValueError(f"it has {len(texts)} texts and {len(images)} images, which must be aligned")
    pieces: list[str | _Picture] = []
    for number, (text, image) in enumerate(zip(texts, images, strict=True), start=1):
        if text is not None and image is not None:
            raise ValueError(f"place {number} holds both a text and an image")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"text {number} is not a text")
        pieces.append(_Picture(image) if text is None else text)
    return pieces


def _mmc4_source(entry: Mapping[str, Any]) -> Any:
    """Returns the image data, which OpenFlamingo stores; without it the file, and without a file the URL."""
    encoded = entry.get("image_base64")
    if isinstance(encoded, str):
        # Early conversions wrote the repr of the bytes, b'...', as text.
        return {"base64": encoded[2:-1] if encoded.startswith("b'") else encoded}
    return entry.get("image_name") or entry.get("raw_url")


def _moscar(example: Mapping[str, Any], omitted: Callable[[str], None]) -> list[str | _Picture]:
    facts = _mappings(example["metadata"], "metadata")
    order = facts[0].get("node_order") if facts else None
    if not isinstance(order, str):
        raise ValueError("its metadata has no node_order")
    texts = {idx: entry.get("text") for idx, entry in _by_index(example["text"], "text", "text_idx").items()}
    images = _by_index(example.get("images"), "images", "img_idx")
    pieces: list[str | _Picture] = []
    for node in order.split("|"):
        kind, _, index = node.partition("_")
        if kind == "txt" and isinstance(texts.get(index), str):
            pieces.append(str(texts.pop(index)))
        elif kind == "img":
            pieces.append(_Picture(_moscar_source(images.pop(index, {}))))
        else:
            raise ValueError(f"{node!r} of node_order is not in its texts")
    for _ in (*texts, *images):
        omitted("nodes that node_order does not list")
    return pieces


def _by_index(value: Any, what: str, key: str) -> dict[str, Mapping[str, Any]]:
    entries = _mappings(value, what)
    found = {entry[key]: entry for entry in entries if isinstance(entry.get(key), str)}
    if len(found) < len(entries):
        raise ValueError(f"each of its {what} must have a {key} of its own")
    return found


def _moscar_source(entry: Mapping[str, Any]) -> Any:
    return next((entry[key] for key in ("bytes", "image", "path", "url") if entry.get(key) is not None), None)


def _listed(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise ValueError(f"its {what} is not a list")
    return value or []


def _texts(value: Any, what: str) -> list[str]:
    texts = _listed(value, what)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"its {what} is not a list of texts")
    return texts


def _mappings(value: Any, what: str) -> Sequence[Mapping[str, Any]]:
    """Returns a list of mappings. `datasets` may store it as a mapping of lists."""
    if isinstance(value, Mapping):
        lists = {key: items for key, items in value.items() if isinstance(items, list)}
        if len(lists) < len(value):
            return [value]
        if len(set(map(len, lists.values()))) > 1:
            raise ValueError(f"the lists of its {what} differ in length")
        return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
    entries = _listed(value, what)
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"its {what} is not a list of mappings")
    return entries


# --------------------------------------------------------------------------------------------- files


def _kind(path: str) -> Literal["table", "archive", "json"]:
    """Detects the kind of a file from its first bytes, or from its name if it cannot be opened."""
    try:
        with open_bytes(path) as file:
            kind = file_kind(file.read(512))
    except READ_ERRORS:
        kind = None
    if kind in _TABLES or (kind is None and suffix(path) in SUFFIXES):
        return "table"
    return "archive" if kind == "a tar archive" or (kind is None and suffix(path) in (".tar", ".tgz")) else "json"


def _table(part: Part) -> Iterator[tuple[Place, Any]]:
    path = part.files[0]
    name = os.path.basename(path)
    try:
        if part.span[0] == "damaged":
            raise DamagedError(part.span[1])
        columns = Columns(open_table(path).schema)
    except DamagedError as fault:
        yield Place(path), Unreadable(name, str(fault), Place(path))
        return
    names = columns.schema.names
    if _format(names) is None:
        raise ConfigError(f"{_WHAT}: {path} is neither OBELICS, MMC4 nor mOSCAR\n{columns}")
    for number, row in table_rows(part, [column for column in names if column not in _QUIET]):
        place = Place(path, number)
        yield place, Unreadable(f"{name}:{number}", row, place) if isinstance(row, str) else row


def _archive(part: Part) -> Iterator[tuple[Place, Any]]:
    """Yields the document in the JSON member of each sample, the format in which OpenFlamingo stores MMC4."""
    for sample in samples(part, lambda name: name.lower().endswith(".json")):
        if not isinstance(sample, Sample):
            yield sample.place or Place(part.files[0]), sample
            continue
        place = Place(part.files[0], sample.number)
        try:
            if (member := sample.only(("json",))) is None or sample.faults:
                raise ValueError("; ".join(sample.faults) or f"it has no json; {sample}")
            found = parse_member(member, sample.members[member])
        except ValueError as error:
            yield place, Unreadable(sample.id, str(error), place)
            continue
        yield place, {"id": sample.id, **found} if isinstance(found, Mapping) else found


def _json(part: Part) -> Iterator[tuple[Place, Any]]:
    for found in json_files.elements(part):
        yield (found.place or Place(part.files[0]), found) if isinstance(found, Unreadable) else found


@lru_cache(maxsize=4)
def _read_addresses(path: str, stamp: tuple[int, int]) -> dict[str, Any]:
    """Returns the image file of each URL. `stamp` is part of the cache key, so that a changed file is read again."""
    found: dict[str, Any] = {}
    if _kind(path) == "table":
        columns, what = Columns(open_table(path).schema), f"{_WHAT}: option 'urls': {path}"
        for column in ("url", "path"):
            columns.find(column, (), "urls", what)
        for part in table_parts([path], 1 << 16):
            for _, row in table_rows(part, ["url", "path"]):
                if isinstance(row, str):
                    raise DamagedError(row)
                found |= {row["url"]: row["path"]} if isinstance(row["url"], str) and row["path"] else {}
        return found
    for part in json_files.parts(path, 1 << 16, f"{_WHAT}: option 'urls'"):
        for element in json_files.elements(part):
            if isinstance(element, Unreadable) or not isinstance(element[1], Mapping):
                raise ConfigError(f"{_WHAT}: option 'urls': {path} is not a JSON mapping")
            entry = element[1]
            listed = entry.keys() >= {"url", "path"}
            if listed and not isinstance(entry["url"], str):
                raise ConfigError(f"{_WHAT}: option 'urls': a url in {path} is not a text")
            found |= {entry["url"]: entry["path"]} if listed else dict(entry)
    return found
