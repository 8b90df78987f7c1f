"""Messages in the formats of OpenAI, ShareGPT, ms-swift, LLaMA-Factory, TRL and lmms-engine.

An example is `{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type":
"text", "text": "Why?"}]}, {"role": "assistant", "content": "Because."}]}`, or has strings with `<image>` as content and
a separate "images" list. See `solo.data.readers.conversations` for all formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from solo.data.readers.examples import MESSAGES
from solo.data.readers.llava import Conversations
from solo.data.readers.registry import reader


@reader("messages")
@dataclass(frozen=True)
class Messages(Conversations):
    """Conversations under "messages" or "conversations"; see `Conversations`."""

    name: ClassVar[str] = "messages"
    message_keys: ClassVar[tuple[str, ...]] = MESSAGES
