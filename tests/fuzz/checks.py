"""What must hold of every source, however damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo.config import ConfigError, ImageConfig, parse_config
from solo.data.images.check import ImageCheck
from solo.data.images.decoding import decode, read_header, verify
from solo.data.images.fast import decode_resized
from solo.data.images.reasons import ImageError
from solo.data.readers import Ignored, Unreadable, open_reader, read
from solo.data.record import ROLES, Image, Place, Record
from solo.data.store.prepare import prepare
from tests.fuzz.sources import Source

_ROWS = re.compile(r"rows [\d,]+ to |what follows row")
_ADDRESS = re.compile(r"at 0x[0-9a-f]{8,}")


@dataclass
class Found:
    """What was read of an input, and what is wrong.

    refused  the message of the ConfigError that refused the source as a whole
    faults   broken promises
    """

    records: int = 0
    unreadable: int = 0
    refused: str = ""
    faults: list[str] = field(default_factory=list)

    def require(self, holds: bool, fault: str) -> None:
        """Notes a fault unless something holds."""
        if not holds:
            self.faults.append(fault)


def _read_parts(source: Source, size: int) -> tuple[list[Any], list[str], str]:
    """Returns what the parts of a source hold, their names, and why reading stopped, if it did."""
    examples, names = list[Any](), list[str]()
    try:
        opened = open_reader(source.reader, source.options)
        opened.about()
        for part in opened.parts(size, None):
            names.append(part.name)
            examples += opened.read(part)
    except ConfigError as error:
        return examples, names, str(error) or "no message"
    return examples, names, ""


def _key(example: Any) -> Any:
    """Returns everything that two readings must agree on."""
    place = example.place and (example.place.file, example.place.line)
    if isinstance(example, Record):
        return "record", example.id, example.turns, place
    if isinstance(example, Unreadable):
        return "unreadable", example.id, example.reason, place
    return type(example).__name__, example.key, place


def _counted(examples: Sequence[Any]) -> list[Any]:
    return [example for example in examples if not isinstance(example, Ignored)]


def check_source(source: Source, found: Found) -> None:
    """Reads a source whole, again, in small parts and up to a limit."""
    whole, names, refused = _read_parts(source, 4096)
    found.refused = refused
    found.records = sum(isinstance(example, Record) for example in whole)
    found.unreadable = sum(isinstance(example, Unreadable) for example in whole)
    for example in whole:
        _check_example(example, found)
    found.require(len(set(names)) == len(names), f"two parts have one name: {names[:6]}")
    again = _read_parts(source, 4096)
    found.require(
        list(map(_key, again[0])) == list(map(_key, whole)) and again[1:] == (names, refused),
        "a second reading differs",
    )
    small, small_names, small_refused = _read_parts(source, 2)
    found.require(len(set(small_names)) == len(small_names), f"two small parts have one name: {small_names[:6]}")
    found.require(
        refused == small_refused, f"small parts are refused for another reason: {refused!r}, {small_refused!r}"
    )
    # Rows that follow damage in a table are one unreadable example of each part.
    cut = any(isinstance(example, Unreadable) and _ROWS.match(example.reason) for example in (*whole, *small))
    if not refused and not cut:
        kept = [[_key(example) for example in _counted(examples)] for examples in (whole, small)]
        found.require(kept[0] == kept[1], f"small parts hold other examples: {len(kept[0])} and {len(kept[1])}")
    total = len(_counted(whole))
    for limit in sorted({1, max(1, total - 1), total + 1}):
        try:
            some = list(map(_key, _counted(list(read(source.reader, source.options, limit)))))
        except ConfigError as error:
            found.require(bool(refused), f"with limit {limit} it is refused: {error}")
            continue
        expected = list(map(_key, _counted(whole)[: len(some) if cut else limit]))
        found.require(
            some == expected or bool(refused), f"limit {limit} gives {len(some)} of {total} examples, or others"
        )


def _check_example(example: Any, found: Found) -> None:
    place = example.place
    found.require(
        isinstance(place, Place) and isinstance(place.file, str) and bool(place.file), f"no place: {example!r:.200}"
    )
    if isinstance(place, Place):
        found.require(
            place.line is None or (type(place.line) is int and place.line >= 1), f"a line that is none: {place}"
        )
    if isinstance(example, Ignored):
        found.require(isinstance(example.key, str), f"a key that is no text: {example.key!r:.100}")
        return
    found.require(isinstance(example.id, str) and bool(example.id), f"no id: {example!r:.200}")
    if isinstance(example, Unreadable):
        found.require(isinstance(example.reason, str) and bool(example.reason.strip()), f"no reason: {example!r:.200}")
        found.require(not _ADDRESS.search(example.reason), f"an address in a reason: {example.reason:.200}")
        found.require(
            len(example.reason) < 3000, f"a reason of {len(example.reason):,} characters: {example.reason:.100}"
        )
        return
    found.require(isinstance(example, Record), f"neither a record nor an unreadable example: {example!r:.200}")
    for turn in example.turns:
        found.require(turn.role in ROLES and type(turn.learned) is bool, f"an unknown turn: {turn!r:.200}")
        for piece in turn.content:
            sound = isinstance(piece, str) or (isinstance(piece, Image) and isinstance(piece.data, bytes))
            found.require(sound, f"a turn holds {type(piece).__name__}")


def _check_text(text: str, what: str, found: Found) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        found.faults.append(f"{what} cannot be printed: {text!r:.200}")


def check_preparation(source: Source, folder: Path, tokenizer: Path, found: Found) -> None:
    """Prepares a source: every example that was read is kept, quarantined or filtered."""
    try:
        json.dumps(source.options, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # no config file can name such a path
    said = list[str]()
    config = parse_config(
        {
            "name": "fuzz",
            "data": {
                "folder": str(folder / "data"),
                "tokenizer": {"path": str(tokenizer)},
                "records_per_shard": 3,
                "sources": {"fuzzed": {"reader": source.reader, "options": source.options}},
            },
            "sequence": {"template": "chatml"},
            "image": {"begin_token": None, "end_token": None, "row_token": None},
            "model": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32},
            "stages": [
                {
                    "name": "a",
                    "mixture": {"fuzzed": 1},
                    "steps": 1,
                    "batch_rows": 1,
                    "optimizer": {"learning_rate": 0.1},
                }
            ],
        }
    )
    try:
        prepared = prepare(config, said.append).sources["fuzzed"]
    except ConfigError:
        return
    for line in said:
        _check_text(line, "a line of the report", found)
    made = prepared.description
    read_of_it = _counted(_read_parts(source, 3)[0])
    found.require(made.examples == len(read_of_it), f"{made.examples} examples are prepared of {len(read_of_it)} read")
    kept = made.records + made.quarantined + sum(made.filtered.values())
    found.require(made.examples == kept, f"{made.examples} were read, {kept} kept, set aside or filtered")
    lines = (prepared.folder / "quarantine.jsonl").read_bytes().split(b"\n")[:-1] if made.quarantined else []
    found.require(
        len(lines) == made.quarantined, f"{len(lines)} lines of the quarantine for {made.quarantined} examples"
    )
    for line in lines:
        found.require(
            {"id", "reason", "file", "line"} <= json.loads(line).keys(), "a line of the quarantine lacks a key"
        )
    for number in range(len(prepared)):
        prepared.read(number)


def check_image(data: bytes, found: Found) -> None:
    """Reads the header of an image file, checks it and decodes it, by both decoders."""
    header = _attempt(lambda: read_header(data), "read_header", found)
    checked = _attempt(lambda: verify(data), "verify", found)
    strict = _attempt(lambda: ImageCheck(True, "white", 1 << 24, strict=True).header(data), "strict", found)
    config = ImageConfig()
    image = _attempt(lambda: decode(data, config), "decode", found)
    found.records, found.unreadable = int(image is not None), int(image is None)
    found.require(checked is None or header == checked, "verify and read_header find other headers")
    found.require(checked is None or image is not None, "an image that verify accepts is not decoded")
    if image is not None and header is not None:
        found.require(image.size == header.size("apply"), f"the header says {header}, the pixels are {image.size}")
    if header is not None and strict is not None:
        fast = _attempt(lambda: decode_resized(data, header, [(8, 8)], config), "decode_resized", found)
        found.require(
            fast is not None and fast[0].shape == (8, 8, 3), "an image that the strict check accepts is not decoded"
        )


def _attempt(work: Callable[[], Any], what: str, found: Found) -> Any:
    try:
        return work()
    except ImageError as error:
        found.require(bool(str(error)) and not _ADDRESS.search(str(error)), f"{what}: a poor reason: {error}")
        _check_text(str(error), what, found)
        return None
