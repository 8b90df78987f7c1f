"""SOLO's own JSON lines, with images as base64 data URIs in the messages.

A line is a list of messages, a mapping with "conversations" or "messages", or a single message. In SOLO's pre-training
data, every message has the role "assistant", which means that all text is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from solo.data.readers.examples import MESSAGES, IgnoredKeys, joined
from solo.data.readers.llava import Conversations
from solo.data.readers.registry import reader
from solo.data.record import Place, Record


@reader("solo")
@dataclass(frozen=True)
class Solo(Conversations):
    """SOLO's data. An example with only assistant turns becomes one `text` turn, without speakers."""

    name: ClassVar[str] = "solo"
    message_keys: ClassVar[tuple[str, ...]] = MESSAGES

    def example(self, value: Any, name: str, place: Place, ignore: IgnoredKeys) -> Record:
        """Returns the record of a line. Raises ValueError if the line is unusable."""
        if isinstance(value, dict) and "content" in value and "role" in value:
            value = [value]
        if isinstance(value, list):
            value = {"messages": value}
        record = super().example(value, name, place, ignore)
        if all(turn.role == "assistant" and turn.learned for turn in record.turns):
            return Record(record.id, joined(record.turns), place)
        return record
