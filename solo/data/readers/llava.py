"""LLaVA conversations, the training format of LLaVA, LLaVA-NeXT, Mono-InternVL, EVE and NEO.

An example is `{"id", "image": path or list of paths, "conversations": [{"from": "human", "value": "<image>\\nWhy?"},
{"from": "gpt", "value": "Because."}]}`. Text-only examples have no "image".
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from solo.config import ConfigError
from solo.data.readers import json_files
from solo.data.readers.examples import IgnoredKeys, example_id, joined, read_example
from solo.data.readers.paths import Paths, expand, suffix
from solo.data.readers.registry import Examples, Part, Reader, Unreadable, reader
from solo.data.record import Place, Record
from solo.files import is_remote


@dataclass(frozen=True)
class Conversations(Reader):
    """Conversations in JSON files: a list or one per line, possibly compressed.

    Image paths are relative to `images`. Each `<image>` placeholder in the text becomes the next image; the chat
    template keeps or removes the line breaks around it. Without a placeholder, the images are put at the start of the
    first turn, one per line. An example is unreadable if the numbers of placeholders and of images differ, a file is
    missing, a speaker is unknown, or an unsupported key would change its meaning.

    With `train_on_inputs`, the loss covers all turns, not only the assistant's: the turns become one `text` turn
    without speakers, as in SOLO's pre-training on captions and web pages.
    """

    path: Paths
    images: str = "."
    train_on_inputs: bool = False

    name: ClassVar[str] = "llava"
    message_keys: ClassVar[tuple[str, ...]] = ("conversations",)

    def parts(self, size: int, limit: int | None) -> Iterable[Part]:
        """Splits files by lines or elements; a compressed file is one part."""
        what = f"reader {self.name!r}"
        for path in expand(self.path, what):
            if suffix(path) in (".yaml", ".yml"):
                raise ConfigError(
                    f"{what}: {path} lists datasets (a LLaVA-NeXT mixture): make each of its `json_path` a source, "
                    "its `sampling_strategy` first:N the source's `limit`"
                )
        if not is_remote(self.images) and not os.path.isdir(os.path.expanduser(self.images)):
            raise ConfigError(f"{what}: option 'images': {self.images} is not a folder")
        return json_files.parts(self.path, size, what)

    def read(self, part: Part) -> Examples:
        """Yields the conversations of a part."""
        ignore = IgnoredKeys()
        for found in json_files.elements(part):
            if isinstance(found, Unreadable):
                yield found
                continue
            place, example = found
            name = json_files.name_of(part, place)
            try:
                yield self.example(example, name, place, ignore)
            except ValueError as error:
                yield Unreadable.because(error, example_id(example, name), place)
            if ignore.has_new:
                yield from ignore.take(place)

    def example(self, value: Any, name: str, place: Place, ignore: IgnoredKeys) -> Record:
        """Returns the record of an example. Raises ValueError if the example is unusable."""
        record = read_example(value, name, place, ignore, os.path.expanduser(self.images), self.message_keys)
        return Record(record.id, joined(record.turns), place) if self.train_on_inputs else record


@reader("llava")
@dataclass(frozen=True)
class Llava(Conversations):
    """Conversations in LLaVA's format, with the messages under "conversations"; see `Conversations`."""
