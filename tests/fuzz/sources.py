"""Makes an input of the fuzzer: the files of a source, of which some are changed, or are not files at all."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutations import Raw, compress, dump, encode, mutate_bytes, mutate_json
from tests.fuzz.seeds import FOLDER, Seed

_ODD_NAMES = (
    "a b",
    "é漢",
    "a%20b",
    "a\nb",
    "a\\b",
    "-x",
    "{0..3}",
    "a*[b]",
    "x" * 200,
    "\udcff",
    ".hidden",
    "a,b",
    "#?",
)
_SUFFIXES = (".json", ".jsonl", ".txt", ".tar", ".parquet", ".arrow", ".png", ".JPG", ".gz", ".zip", ".mp4", ".csv", "")


@dataclass(frozen=True)
class Source:
    """A source in a folder, with the changes that made it, in words."""

    reader: str
    options: dict[str, Any]
    changes: tuple[str, ...]


def make_source(seed: Seed, folder: Path, random: Random) -> Source:
    """Writes the files of a seed to a folder, after one to three changes."""
    files = dict(seed.files)
    special: dict[str, str] = {}
    changes = list[str]()
    options = json.loads(json.dumps(random.choice(seed.options)))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        names = [name for name in (seed.main if random.random() < 0.85 else tuple(files)) if name in files]
        if not names:
            break
        name = random.choice(names)
        draw = random.random()
        if draw < 0.72:
            change = _change_of(name, files[name], random)
            files[name] = change(files[name], random)
            changes.append(f"{name}: {change.__name__.strip('_')}")
        elif draw < 0.82:
            files[name] = compress(files[name], random)
            if random.random() < 0.5:
                files[name] = mutate_bytes(files[name], random)
            changes.append(f"{name}: compressed")
        elif draw < 0.92:
            special[name] = random.choice(_SPECIAL)
            changes.append(f"{name}: {special[name]}")
        else:
            stem, suffix = os.path.splitext(name)
            odd = f"{os.path.dirname(name)}/{random.choice(_ODD_NAMES)}{suffix}".lstrip("/")
            new = random.choice((stem + random.choice(_SUFFIXES), odd))
            files[new] = files.pop(name)
            if random.random() < 0.7:
                options = json.loads(
                    json.dumps(options).replace(json.dumps(f"{FOLDER}/{name}"), json.dumps(f"{FOLDER}/{new}"))
                )
            changes.append(f"{name}: renamed to {new!r}")
    for name, data in files.items():
        _write(folder / name, data, special.get(name))
    placed = json.loads(json.dumps(options).replace(FOLDER, str(folder)))
    return Source(seed.reader, placed, tuple(changes))


_SPECIAL = ("empty", "absent", "folder", "named pipe", "broken link", "link to itself", "unreadable", "link to folder")


def _write(path: Path, data: bytes, special: str | None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if special is None or special in ("empty", "unreadable"):
            path.write_bytes(b"" if special == "empty" else data)
            if special == "unreadable":
                path.chmod(0)
        elif special == "folder":
            path.mkdir()
        elif special == "named pipe":
            os.mkfifo(path)
        elif special == "broken link":
            path.symlink_to(path.parent / "nowhere")
        elif special == "link to itself":
            path.symlink_to(path)
        elif special == "link to folder":
            path.symlink_to(path.parent)
    except OSError:
        pass  # two changes may ask for a file and a folder of one name


def _change_of(name: str, data: bytes, random: Random) -> Callable[[bytes, Random], bytes]:
    """Returns a change that fits a file."""
    draw = random.random()
    if draw < 0.25:
        return mutate_bytes
    if name.endswith((".json", ".jsonl")):
        return change_json if draw < 0.93 else encode
    if name.endswith(".tar"):
        return change_archive
    if name.endswith((".parquet", ".arrow")):
        return change_table
    return encode if name.endswith((".txt", ".csv")) else mutate_bytes


def change_json(data: bytes, random: Random) -> bytes:
    """Changes JSON, or some lines of it."""
    try:
        return dump(mutate_json(json.loads(data), random), random)
    except (ValueError, RecursionError):
        pass
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        number = random.randrange(len(lines))
        try:
            lines[number] = dump(mutate_json(json.loads(lines[number]), random), random)
        except (ValueError, RecursionError):
            lines[number] = mutate_bytes(lines[number], random)
    return b"\n".join(lines)


def change_archive(data: bytes, random: Random) -> bytes:
    """Writes the members of an archive anew, some of them changed."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(info, (archive.extractfile(info) or io.BytesIO()).read()) for info in archive]
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, RecursionError):
        return mutate_bytes(data, random)
    buffer = io.BytesIO()
    if random.random() < 0.2:
        random.shuffle(members)
    form = random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for info, content in members:
            if random.random() < 0.4:
                content = (change_json if info.name.endswith("json") else mutate_bytes)(content, random)
            info.size = len(content)
            draw = random.random()
            if draw < 0.1:
                info.type = random.choice(
                    (
                        tarfile.SYMTYPE,
                        tarfile.LNKTYPE,
                        tarfile.FIFOTYPE,
                        tarfile.CHRTYPE,
                        tarfile.DIRTYPE,
                        b"x",
                        b"L",
                        b"S",
                        b"7",
                    )
                )
                info.linkname = random.choice(("../../etc/hostname", info.name, ""))
                if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
                    info.size = 0
            elif draw < 0.25:
                info.name = random.choice(
                    (
                        "../" + info.name,
                        "/" + info.name,
                        "a" * 150 + "/" + info.name,
                        ".." + info.name,
                        "\udcff" + info.name,
                        info.name.upper(),
                        "é" + info.name,
                        "0000.png",
                        "noext",
                        "x/.y.png",
                    )
                )
            elif draw < 0.3:
                info.pax_headers = {
                    "comment": "é",
                    "path": "other.png",
                    "size": random.choice(("1", "99999999999", "-1", "x")),
                }
            if random.random() < 0.05:
                continue
            for _ in range(random.choice((1,) * 15 + (2,))):
                try:
                    archive.addfile(info, io.BytesIO(content))
                except (ValueError, OSError):
                    break
    return buffer.getvalue() * random.choice((1,) * 8 + (2,))


def change_table(data: bytes, random: Random) -> bytes:
    """Writes a table anew, with some of its values or columns changed."""
    try:
        is_parquet = data.startswith(b"PAR1")
        source = pa.BufferReader(data)
        table = (
            pq.read_table(source)
            if is_parquet
            else (pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream)(source).read_all()
        )
        table.validate(full=True)  # a damaged one may point outside its memory
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError):
        return mutate_bytes(data, random)
    metadata = table.schema.metadata if random.random() < 0.7 else None
    if random.random() < 0.75:
        rows = mutate_json(_as_json(rows), random)
        rows = [_from_json(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        array = _array(values, random)
        draw = random.random()
        if draw < 0.03:
            array = pa.nulls(len(values))
        elif draw < 0.06:
            array = pa.array([str(value)[:50].encode(errors="replace").decode() for value in values])
        elif draw < 0.1 and not pa.types.is_nested(array.type):
            array = array.dictionary_encode()
        arrays[name.encode(errors="replace").decode()] = array
    if arrays and random.random() < 0.15:
        arrays.pop(random.choice(list(arrays)))
    if metadata is not None and random.random() < 0.2:
        metadata = {key: change_json(value, random) for key, value in metadata.items()}
    changed = pa.table(arrays).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    try:
        if is_parquet:
            pq.write_table(
                changed,
                buffer,
                row_group_size=random.choice((1, 2, 100)),
                compression=random.choice(("snappy", "zstd", "gzip", "none")),
                use_dictionary=random.random() < 0.5,
                version=random.choice(("1.0", "2.6")),
            )
        else:
            with random.choice((pa.ipc.new_stream, pa.ipc.new_file))(buffer, changed.schema) as writer:
                writer.write_table(changed, max_chunksize=random.choice((1, 2, 100)))
    except (pa.ArrowException, ValueError, TypeError):
        return mutate_bytes(data, random)
    return buffer.getvalue()


def _as_json(value: Any) -> Any:
    """Returns a value with the bytes in it as hexadecimal text, which `_from_json` turns back."""
    if isinstance(value, bytes):
        return "hex:" + value.hex()
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("hex:"):
        try:
            return bytes.fromhex(value[4:])
        except ValueError:
            return value.encode(errors="replace")
    if isinstance(value, Raw):
        return float("nan")
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    return [_from_json(item) for item in value] if isinstance(value, list) else value


def _array(values: list[Any], random: Random) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        texts = [None if value is None else value if isinstance(value, str) else str(value)[:200] for value in values]
        return pa.array([text and text.encode(errors="replace").decode() for text in texts], pa.string())
