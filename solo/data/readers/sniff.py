"""Chooses the reader of a source from its path and content: `reader: auto`."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from solo.config import ConfigError
from solo.data.readers.file_kinds import file_kind
from solo.data.readers.folder import SPLITS
from solo.data.readers.frames import CONTAINERS
from solo.data.readers.imagefolder import IMAGE_SUFFIXES, METADATA
from solo.data.readers.listing import Entry, is_folder, list_folder
from solo.data.readers.paths import READ_ERRORS, expand, open_bytes, suffix
from solo.data.readers.registry import Reader, Registered, find_reader, reader_names, register
from solo.data.readers.tables import open_table, table_files
from solo.data.readers.text_files import DamagedError

AUTO = "auto"
_WHAT = f"reader {AUTO!r}"
_HEAD = 1 << 20  # bytes of a file that are inspected
_EXAMPLES = 20  # examples whose keys are inspected
_TEXTS = (".txt", ".md", ".text")
_TABLES = (".json", ".jsonl", ".ndjson")
_PAIR_IMAGES = ("image", "file_name", "image_path")
_IMAGES = frozenset(("image", "images", "img", "jpg", "jpeg", "png", "webp", "image_path", "file_name"))
_ARCHIVES = (".tar", ".tgz", ".tbz", ".txz")
# Formats that no reader supports, with advice.
_ADVICE = {
    ".zip": "unpack it",
    ".tfrecord": "prepare the dataset with file_format='array_record' (`tfds convert_format`) for reader 'tfds'",
    ".array_record": "set path to the folder that holds dataset_info.json and features.json, for reader 'tfds'",
    ".csv": "write JSONL or Parquet; a metadata.csv is read with its folder, by reader 'imagefolder'",
    ".tsv": "write JSONL or Parquet",
    ".npz": "write image files, or JSONL or Parquet",
    ".npy": "write image files, or JSONL or Parquet",
    ".h5": "write image files, or JSONL or Parquet",
    ".hdf5": "write image files, or JSONL or Parquet",
    ".pkl": "pickles can run code and are never read; write JSONL or Parquet",
    ".pickle": "pickles can run code and are never read; write JSONL or Parquet",
    ".pt": "pickles can run code and are never read; write JSONL or Parquet",
    **dict.fromkeys(CONTAINERS, "make frames of it, as with ffmpeg, for reader 'frames'"),
    **dict.fromkeys(IMAGE_SUFFIXES, "set path to the folder of the images, for reader 'folder' or 'imagefolder'"),
}


@dataclass(frozen=True)
class Chosen:
    """The reader chosen for a source, with its options and the reason (empty if the config names the reader)."""

    reader: str
    options: dict[str, Any]
    why: str = ""


def choose_reader(name: str, options: Mapping[str, Any]) -> Chosen:
    """Returns the reader of a source. `auto` chooses it based on `options["path"]`.

    Raises:
        ConfigError: the path does not exist, or no reader fits; the message describes what was found.
    """
    if name != AUTO:
        return Chosen(name, dict(options))
    path = options.get("path")
    if not (isinstance(path, str) or (isinstance(path, list | tuple) and all(isinstance(p, str) for p in path))):
        raise ConfigError(
            f"{_WHAT}: options.path must be a path, a glob or a list of them, from which the reader is chosen;"
            " otherwise name a reader"
        )
    paths = expand(path if isinstance(path, str) else tuple(path), _WHAT)
    split = options.get("split")
    found = _choose(paths[0], split if isinstance(split, str) else None)
    for other in paths[1:]:
        # Globs may match a hundred thousand files, so only the names are compared.
        same = suffix(other) == suffix(paths[0]) or _choose(other, None).reader == found.reader
        if not same:
            raise ConfigError(
                f"{_WHAT}: {paths[0]} is read by {found.reader!r}, but {other} is not; make two sources of them"
            )
    return Chosen(found.reader, {**found.options, **dict(options)}, f"{paths[0]}: {found.why}")


@dataclass(frozen=True)
class _Auto(Registered):
    def open(self, options: Mapping[str, Any]) -> Reader:
        chosen = choose_reader(AUTO, options)
        try:
            return find_reader(chosen.reader).open(chosen.options)
        except ConfigError as error:
            raise ConfigError(f"{error} (chosen because {chosen.why})") from None


register(_Auto(AUTO, _Auto, endless=False))


def _choose(path: str, split: str | None) -> Chosen:
    return _folder(path, split) if is_folder(path) else _file(path)


def _unknown(path: str, seen: str) -> ConfigError:
    known = ", ".join(name for name in reader_names() if name != AUTO)
    return ConfigError(f"{_WHAT}: no reader is known for {path}: {seen}; the readers are {known}")


# -------------------------------------------------------------------------------------------- folders


def _folder(path: str, split: str | None) -> Chosen:
    entries = list_folder(path, "", _WHAT)
    names = [entry.name for entry in entries]
    folders = [entry.name for entry in entries if entry.is_folder]
    if {"dataset_info.json", "features.json"} <= set(names):
        return Chosen("tfds", {}, "it holds dataset_info.json and features.json")
    if {"state.json", "dataset_dict.json"}.intersection(names):
        return _table(table_files(path, split, _WHAT)[0], "it is a dataset that `datasets` saved: ")
    if metadata := next((name for name in METADATA if name in names), None):
        return Chosen("imagefolder", {}, f"it holds {metadata}")
    # img2dataset writes 00000.parquet and 00000_stats.json beside the folder 00000.
    shards = {f"{name}{end}" for name in folders if name.isdigit() for end in (".parquet", "_stats.json")}
    suffixes = {suffix(entry.name) for entry in entries if not entry.is_folder and entry.name not in shards}
    if archives := suffixes.intersection(_ARCHIVES):
        # img2dataset writes 00000.parquet and 00000_stats.json beside 00000.tar.
        stems = {name[: -len(suffix(name))] for name in names if suffix(name) in archives}
        data = [name for name in names if suffix(name) in (".parquet", ".arrow", *_TABLES)]
        if other := [name for name in data if name[: -len(suffix(name))].removesuffix("_stats") not in stems]:
            raise _unknown(
                path, f"it holds {min(archives)} archives, but also {other[0]}; set path to one kind of them"
            )
        return Chosen("webdataset", {}, f"it holds {min(archives)} archives")
    if ".parquet" in suffixes or any(_holds_tables(f"{path}/{name}") for name in folders[:3]):
        return _table(table_files(path, split, _WHAT)[0], "it is a folder of tables: ")
    if data := sorted(suffixes.intersection(_TABLES)):
        example = f"{path.rstrip('/')}/*{data[0]}"
        raise _unknown(path, f"it holds {', '.join(data)} files; set path to them, such as {example}")
    if suffixes & IMAGE_SUFFIXES:
        if ".txt" in suffixes:
            return Chosen("imagefolder", {"beside": ".txt"}, "it holds images with text files beside them")
        raise _unknown(
            path, "it holds images without captions: no metadata.jsonl, no .txt beside them, no class folders"
        )
    if suffixes & CONTAINERS and not folders:
        raise _unknown(path, f"it holds videos ({', '.join(sorted(suffixes & CONTAINERS))}); {_ADVICE['.mp4']}")
    return _folder_of_folders(path, folders)


def _folder_of_folders(path: str, folders: list[str]) -> Chosen:
    if not folders:
        raise _unknown(path, "the folder is empty" if not os.listdir(path) else "it holds no file of a known kind")
    inside = {name: _inside(f"{path}/{name}") for name in folders[:3]}
    for name, entries in inside.items():
        below = f"{path.rstrip('/')}/{name}"
        if any(entry.name in (*METADATA, "dataset_info.json") for entry in entries):
            raise _unknown(path, f"{name} is a source of its own; set path to {below}")
        if name.lower() in SPLITS and any(entry.is_folder for entry in entries):
            raise _unknown(path, f"its folders are splits ({', '.join(folders[:3])}); set path to {below}")
        if any(
            suffix(entry.name) == ".array_record" or (entry.is_folder and _is_tfds(f"{below}/{entry.name}"))
            for entry in entries
        ):
            raise _unknown(path, f"it holds datasets of TFDS; set path to the folder of a version in {below}")
    first = next(iter(inside))
    files = [entry.name for entries in inside.values() for entry in entries if not entry.is_folder]
    if not any(suffix(name) in IMAGE_SUFFIXES for name in files) and not any(
        e.is_folder for es in inside.values() for e in es
    ):
        raise _unknown(path, f"its folders hold no images; {first} holds {_kinds(files)}")
    if any(_are_pairs([entry.name for entry in entries]) for entries in inside.values()):
        return Chosen("imagefolder", {"beside": ".txt"}, "its folders hold images with text files beside them")
    if os.path.isfile(f"{path}/{first}.txt") or _are_frames(inside):
        return Chosen("frames", {}, "it holds a folder of frames per video, with captions")
    return Chosen("folder", {}, f"it holds {len(folders):,} folders of images, such as {first}")


def _inside(path: str) -> list[Entry]:
    """Returns the entries of a folder; empty if it cannot be read."""
    try:
        return list_folder(path, "", _WHAT)
    except ConfigError:
        return []


def _are_pairs(names: list[str]) -> bool:
    """Returns whether at least half of the images in a folder have a text file of the same name."""
    stems = [os.path.splitext(name)[0] for name in names if suffix(name) in IMAGE_SUFFIXES]
    texts = {os.path.splitext(name)[0] for name in names if suffix(name) == ".txt"}
    return bool(stems) and 2 * len(texts.intersection(stems)) >= len(stems)


def _are_frames(inside: Mapping[str, list[Entry]]) -> bool:
    """Returns whether folders contain numbered frames and one text file each."""
    for entries in inside.values():
        names = [entry.name.lower() for entry in entries]
        if sum(suffix(name) == ".txt" for name in names) != 1 or not any(suffix(n) in IMAGE_SUFFIXES for n in names):
            return False
    return True


def _is_tfds(path: str) -> bool:
    return os.path.isfile(f"{path}/dataset_info.json") and os.path.isfile(f"{path}/features.json")


def _kinds(names: list[str]) -> str:
    return ", ".join(sorted({suffix(name) or "files without a suffix" for name in names})) or "nothing"


# ---------------------------------------------------------------------------------------------- files


def _file(path: str) -> Chosen:
    try:
        with open_bytes(path) as file:
            head = file.read(_HEAD)
    except READ_ERRORS as error:
        raise ConfigError(f"{_WHAT}: cannot read {path}: {error}") from None
    kind = file_kind(head)
    end = suffix(path)
    if kind in ("a Parquet file", "an Arrow file", "an Arrow stream"):
        return _table(path, "")
    if kind == "a tar archive" or (end in _ARCHIVES and kind is None):
        return _archive(head)
    if end in (".parquet", ".arrow"):
        raise _unknown(path, f"it is {kind or 'no table, though its name ends in ' + end}")
    file_name = os.path.basename(path)
    if mark := next((mark for mark in _ADVICE if mark == end or f"{mark}-" in file_name), None):
        raise _unknown(path, f"it is a {mark} file; {_ADVICE[mark]}")
    if kind is not None:
        raise _unknown(path, f"it is {kind}")
    if not head.strip():
        raise _unknown(path, "the file is empty")
    text = _decode(head)
    if text is None:
        raise _unknown(path, "it is neither text nor a file of a known kind")
    if end in _TABLES or (end not in _TEXTS and text.lstrip()[:1] in ("{", "[")):
        return _json(path, text.lstrip())
    if end in _TEXTS:
        return Chosen("text", {}, f"it is a {end} file")
    raise _unknown(path, "it is a text file of an unknown kind")


def _archive(head: bytes) -> Chosen:
    """Returns the reader of a tar archive. Its first JSON member shows whether it contains interleaved documents."""
    # Not opened as a stream: a damaged header may claim exabytes, which a stream would try to read.
    cut_off = (tarfile.TarError, ValueError, EOFError, OSError, RecursionError)
    with suppress(*cut_off), tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
        for member in islice(archive, _EXAMPLES):
            file = archive.extractfile(member) if member.isfile() and suffix(member.name) == ".json" else None
            if file is None:
                continue
            value = json.loads(file.read())
            if isinstance(value, dict) and (found := _example(value)) and found.reader == "interleaved":
                return Chosen("interleaved", {}, "it is a tar archive of documents of texts and images")
            break
    return Chosen("webdataset", {}, "it is a tar archive")


def _decode(head: bytes) -> str | None:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = io.TextIOWrapper(io.BytesIO(head), encoding, errors="replace").read()
    return None if text.count("\0") or text.count("\ufffd") > len(text) // 10 else text


def _table(path: str, seen: str) -> Chosen:
    try:
        schema = open_table(path).schema
    except DamagedError as error:
        raise ConfigError(f"{_WHAT}: cannot read {path}: {error}") from None
    shown = f"{seen}{os.path.basename(path)} is a table with the columns {', '.join(schema.names[:8])}"
    if {"texts", "images"} <= set(schema.names) and _is_list_of_text(schema.field("texts").type):
        return Chosen("interleaved", {}, f"{shown}: texts and images in turn")
    if {"text", "metadata"} <= set(schema.names) and schema.field("text").type.num_fields:  # not plain text
        return Chosen("interleaved", {}, f"{shown}: texts and images in the order of mOSCAR")
    # Reader 'text' does not accept folders.
    if not seen and "text" in schema.names and not _IMAGES.intersection(schema.names):
        return Chosen("text", {}, f"{shown}: text without images")
    return Chosen("parquet", {}, shown)


def _holds_tables(path: str) -> bool:
    return any(suffix(entry.name) == ".parquet" for entry in _inside(path))


def _is_list_of_text(kind: Any) -> bool:
    import pyarrow.types as types

    if not (types.is_list(kind) or types.is_large_list(kind)):
        return False
    return bool(types.is_string(kind.value_type) or types.is_large_string(kind.value_type))


# ----------------------------------------------------------------------------------------------- JSON


def _json(path: str, text: str) -> Chosen:
    if text.startswith("["):
        examples = _first_elements(text)
        if examples and not all(isinstance(example, dict) for example in examples):
            raise _unknown(path, f"its list holds {type(examples[0]).__name__} values, not mappings")
    else:
        top = _top(text)
        if found := _document(top):
            return found
        examples = _lines(text) or ([top] if top else [])
    if not examples:
        raise _unknown(path, "no example could be parsed at its beginning")
    # Text-only examples of a mixture lack some keys.
    merged: dict[str, Any] = {}
    for example in examples:
        merged = {**example, **{key: value for key, value in merged.items() if value is not None}}
    if all(_is_read_by_solo(example) for example in examples):
        return Chosen("solo", {}, "its messages are all the assistant's, as in SOLO's pre-training data")
    found_reader = _example(merged)
    if found_reader is None:
        raise _unknown(path, f"its examples have the keys {', '.join(list(merged)[:10])}")
    return found_reader


def _document(top: Mapping[str, Any]) -> Chosen | None:
    """Returns the reader for a JSON file whose single mapping describes a whole dataset."""
    first = {key: value[0] for key, value in top.items() if isinstance(value, list) and value}
    if isinstance(first.get("questions"), dict) or _has(first.get("data"), "question"):
        return Chosen("vqa", {}, "it has questions about images")
    if _has(first.get("annotations"), "question_id"):
        raise ConfigError(
            f"{_WHAT}: it holds the answers of VQA; use reader 'vqa' with the file of the questions as path, and this"
            " one as annotations"
        )
    if isinstance(first.get("images"), dict) and (
        "annotations" in top or _has(first["images"], "file_name", "sentences")
    ):
        return Chosen("coco", {}, "it has images and annotations in COCO's format")
    values = list(top.values())
    if values and all(_has(value, "question", "answer") for value in values[:3]):
        return Chosen("vqa", {}, "it has questions about images in GQA's format")
    return None


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in keys)


def _example(keys: Mapping[str, Any]) -> Chosen | None:
    """Returns the reader for examples with these keys."""
    shown = "its examples have"
    # MMC4, OBELICS and mOSCAR.
    if "text_list" in keys or ("texts" in keys and "images" in keys) or isinstance(keys.get("text"), list):
        return Chosen("interleaved", {}, f"{shown} texts and images in turn")
    if isinstance(keys.get("text"), list) and "metadata" in keys:
        return Chosen("interleaved", {}, f"{shown} texts and images in the order of mOSCAR")
    if isinstance(keys.get("frames"), list) or ("video" in keys and suffix(str(keys["video"])) not in CONTAINERS):
        return Chosen("frames", {}, f"{shown} lists of frames")
    if "conversations" in keys:
        return Chosen("llava", {}, f"{shown} 'conversations'")
    if "messages" in keys or {"query", "response"} <= keys.keys():
        return Chosen(
            "messages", {}, f"{shown} 'messages'" if "messages" in keys else f"{shown} 'query' and 'response'"
        )
    if "question" in keys and ("answer" in keys or "answers" in keys or "question_id" in keys):
        return Chosen("vqa", {}, f"{shown} 'question'")
    if ("caption" in keys or "text" in keys) and any(isinstance(keys.get(key), str) for key in _PAIR_IMAGES):
        return Chosen("coco", {}, f"{shown} an image and a caption each")
    if {"role", "content"} <= keys.keys():
        return Chosen("solo", {}, f"{shown} are messages, in lists or alone")
    if "text" in keys and not _IMAGES.intersection(keys):
        return Chosen("text", {}, f"{shown} 'text'")
    return None


def _is_read_by_solo(example: Any) -> bool:
    messages = example.get("messages", example.get("conversations")) if isinstance(example, dict) else None
    if not isinstance(messages, list) or not messages:
        return False
    return all(isinstance(message, dict) and message.get("role") == "assistant" for message in messages)


def _first_elements(text: str) -> list[Any]:
    """Returns the first elements of a JSON list that may be truncated."""
    found: list[Any] = []
    position = 1
    while len(found) < _EXAMPLES:
        try:
            value, position = _DECODER.raw_decode(text, _skip(text, position))
        except (ValueError, RecursionError):
            break
        found.append(value)
        position = _skip(text, position) + 1
        if text[position - 1 : position] != ",":
            break
    return found


def _top(text: str) -> dict[str, Any]:
    """Returns the known content of a JSON mapping that may be truncated; in a truncated list, its first element."""
    found: dict[str, Any] = {}
    position = 1
    try:
        while True:
            key, position = _DECODER.raw_decode(text, _skip(text, position))
            position = _skip(text, _skip(text, position) + 1)  # a colon
            if not isinstance(key, str):
                break
            try:
                found[key], position = _DECODER.raw_decode(text, position)
            except ValueError:
                found[key] = _first_elements(text[position:])[:1] if text[position : position + 1] == "[" else None
                break
            position = _skip(text, position) + 1  # a comma
    except (ValueError, RecursionError):
        pass
    return found


def _lines(text: str) -> list[Any]:
    found = []
    for line in text.splitlines()[:_EXAMPLES]:
        try:
            found += [value] if isinstance(value := json.loads(line), dict) else []
        except (ValueError, RecursionError):
            continue
    return found


def _skip(text: str, position: int) -> int:
    """Returns the position of the next character that is not white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


_DECODER = json.JSONDecoder(strict=False)
