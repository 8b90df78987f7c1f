"""The chat template and the end tokens of a published repository, read as transformers reads them.

The template is Jinja: `chat_template.jinja`, or the key `chat_template` of tokenizer_config.json. It runs in Jinja's
sandbox. The end tokens are `eos_token_id` of generation_config.json, or else of config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Never

import jinja2
import tokenizers
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from solo.data.record import Image, Turn
from solo.data.text import Tokenizer
from solo.data.text.huggingface import FILE, with_tokens
from solo.data.text.repository import CONFIG_FILE, read_repository_tokens
from solo.data.text.sentencepiece_model import with_repository_tokens
from solo.data.text.templates import Runs, Template, TextRun
from solo.interop.config_json import read_json_object
from solo.interop.layout import LayoutError
from solo.interop.sentencepiece_json import tokenizer_json

TEMPLATE_FILE = "chat_template.jinja"
_ANSWER = "solo-answer"
_BEGUN = ({"role": "user", "content": "solo-question"}, {"role": "assistant", "content": _ANSWER})


def published_template(folder: Path, tokenizer: Tokenizer) -> PublishedTemplate | None:
    """Returns the chat template of a repository, or None if it has none.

    Raises:
        ValueError: the template or a file that it needs cannot be read; the message names it.
    """
    config = read_json_object(folder / CONFIG_FILE)
    file = folder / TEMPLATE_FILE
    source: Any
    if file.is_file():
        source, origin = file.read_text(encoding="utf-8"), str(file)
    else:
        source, origin = config.get("chat_template"), f"chat_template of {folder / CONFIG_FILE}"
        if isinstance(source, list):  # named templates; all except `default` are for tools
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, Mapping)}
            if "default" not in named:
                raise LayoutError(f"{origin}: there is no template `default` among {', '.join(map(str, named))}")
            source = named["default"]
    if source is None:
        return None
    if not isinstance(source, str):
        raise LayoutError(f"{origin} is not a text")
    names = {**read_json_object(folder / "special_tokens_map.json"), **config}
    texts = {key: value.get("content") if isinstance(value, Mapping) else value for key, value in names.items()}
    tokens = {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}
    return PublishedTemplate(source, origin, tokenizer, _encoder(folder, tokens), tokens, end_tokens(folder, tokenizer))


def end_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the tokens that end an answer, of generation_config.json or else config.json; none if neither has any.

    Raises:
        LayoutError: they are not token ids of the vocabulary.
    """
    for name in ("generation_config.json", "config.json"):
        found = read_json_object(folder / name).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if strange := [each for each in ids if type(each) is not int or not 0 <= each < tokenizer.vocab_size]:
            raise LayoutError(
                f"{folder / name}: eos_token_id has {strange[0]!r}, which is no id of the {tokenizer.vocab_size:,}"
                " tokens of its tokenizer"
            )
        if ids:
            return tuple(ids)
    return ()


class PublishedTemplate(Template):
    """A chat template in Jinja. Its tokens are those of `apply_chat_template` of transformers.

    Unlike in transformers, text never encodes to a special token: a message that contains the name of one is split
    there. Images are refused, because these templates belong to text models.

    Args:
        source: the template.
        origin: where it was found, for messages.
        tokenizer: the model's tokenizer, for `text` turns.
        encoder: encodes rendered text, in which the names of special tokens stand for them.
        tokens: texts of special tokens by the names that templates use (`bos_token`).
        ends: tokens that end an answer.
    """

    def __init__(
        self,
        source: str,
        origin: str,
        tokenizer: Tokenizer,
        encoder: tokenizers.Tokenizer,
        tokens: Mapping[str, str],
        ends: tuple[int, ...],
    ) -> None:
        super().__init__(tokenizer)
        self._origin, self._encoder, self._tokens, self._ends = origin, encoder, tokens, ends
        added = encoder.get_added_tokens_decoder().values()
        self._special = [token.content for token in added if token.special and len(token.content) > 1]
        try:
            self._jinja = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise LayoutError(f"{origin} is not a Jinja template: {error}") from None
        self.closing = self._closing_tokens()

    @property
    def stops(self) -> tuple[int, ...]:
        """The special token that the template writes after an answer, the repository's end tokens, and the tokenizer's.

        Some repositories name only one of them.
        """
        return tuple(dict.fromkeys([*self.closing[:1], *self._ends, self._tokenizer.special.eos]))

    def runs(self, turns: Sequence[Turn], open_turn: bool = False, continued: bool = False) -> Runs:
        """See `Template`. Raises ValueError, too, if the template refuses a conversation."""
        if all(turn.role == "text" for turn in turns):
            return super().runs(turns, open_turn, continued)
        apart = self._separator(turns)
        messages = [_message(turn, self._special, apart) for turn in turns]
        if continued:
            messages = [*_BEGUN, *messages]
        extends = open_turn and turns[-1].role == "assistant"
        text = self._render(messages, asks=open_turn and not extends)
        if extends:
            text = _cut_after(text, messages[-1]["content"])
        answers = [] if open_turn else self._answers(messages, turns, text, apart)
        start = len(self._prefix(text, self._render(_BEGUN, asks=False)).replace(apart, "")) if continued else 0
        return _supervised_runs(self._encode(text, apart, start), answers)

    def batch_runs(self, documents: Sequence[Sequence[Turn]]) -> list[Runs | ValueError]:
        """See `Template`."""
        found: list[Runs | ValueError] = []
        for turns in documents:
            try:
                found.append(self.runs(turns))
            except ValueError as error:
                found.append(error)
        return found

    def _turn(self, turn: Turn, first: bool, is_open: bool) -> Never:
        raise ValueError("a conversation with a published chat template cannot hold turns of plain text")

    def _render(self, messages: Sequence[Mapping[str, str]], asks: bool) -> str:
        try:
            return self._jinja.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=asks, **self._tokens
            )
        except Exception as error:  # a template can raise any error
            raise ValueError(f"{self._origin} refuses the conversation: {error}") from None

    def _prefix(self, text: str, prefix: str) -> str:
        if not text.startswith(prefix):
            raise ValueError(
                f"{self._origin} renders earlier turns differently once others follow, so the tokens of a single turn"
                " are not defined; pass the whole conversation to generate()"
            )
        return prefix

    def _answers(
        self, messages: Sequence[Mapping[str, str]], turns: Sequence[Turn], text: str, apart: str
    ) -> list[tuple[int, int]]:
        """Returns the characters [start, stop) of each learned answer with what the template writes after it."""
        found = []
        for number, turn in enumerate(turns):
            if turn.supervised:
                before = self._prefix(text, self._render(messages[:number], asks=True))
                after = self._prefix(text, self._render(messages[: number + 1], asks=False))
                found.append((len(before.replace(apart, "")), len(after.replace(apart, ""))))
        return found

    def _separator(self, turns: Sequence[Turn]) -> str:
        """Returns a character that no turn contains. It separates the parts of messages that name special tokens."""
        text = "".join(part for turn in turns for part in turn.content if isinstance(part, str))
        return next(each for each in map(chr, range(0xE000, 0xF8FF)) if each not in text)

    def _encode(self, text: str, apart: str, start: int = 0) -> list[tuple[int, int]]:
        """Returns (place, id) of each token of rendered text from a character on. Places do not count separators."""
        found, place = [], 0
        for part in text.split(apart):
            encoded = self._encoder.encode(part, add_special_tokens=False)
            found += [(place + begin, token) for token, (begin, _) in zip(encoded.ids, encoded.offsets, strict=True)]
            place += len(part)
        return [(begin, token) for begin, token in found if begin >= start]

    def _closing_tokens(self) -> tuple[int, ...]:
        """Returns the special token that follows an answer, and what the template writes after it."""
        try:
            text = self._render(_BEGUN, asks=False)
        except ValueError:
            return ()
        end = text.rfind(_ANSWER) + len(_ANSWER)
        tokens = [token for _, token in self._encode(text, "\0", end)]
        special = [number for number, token in enumerate(tokens) if token in self._tokenizer.special_ids]
        return tuple(tokens[special[0] :]) if special else ()


def _message(turn: Turn, special: Sequence[str], apart: str) -> dict[str, str]:
    if turn.role == "text":
        raise ValueError("a conversation with a published chat template cannot hold turns of plain text")
    if any(isinstance(part, Image) for part in turn.content):
        raise ValueError("a published chat template of a text model has no place for images")
    text = "".join(part for part in turn.content if isinstance(part, str))
    for name in special:
        text = text.replace(name, name[0] + apart + name[1:])
    return {"role": turn.role, "content": text}


def _cut_after(text: str, content: str) -> str:
    """Cuts rendered text after the last message, which is to be continued. Templates may strip its white space."""
    for wanted in (content, content.strip()):
        place = text.rfind(wanted)
        if place >= 0:
            return text[: place + len(wanted)]
    raise ValueError("the chat template changes the text of the last turn, so it cannot be continued")


def _supervised_runs(tokens: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> Runs:
    learned = [(any(start <= place < stop for start, stop in answers), token) for place, token in tokens]
    return [
        TextRun(tuple(token for _, token in group), supervised)
        for supervised, group in groupby(learned, key=lambda each: each[0])
    ]


def _encoder(folder: Path, tokens: Mapping[str, str]) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a repository that finds special tokens in text, as that of transformers does."""
    file, found = folder / FILE, read_repository_tokens(folder)
    if file.is_file():
        text = with_tokens(file.read_text(encoding="utf-8"), found.added)
    else:
        model = with_repository_tokens((folder / "tokenizer.model").read_bytes(), found)
        # Hugging Face splits rendered text at added tokens, which is wanted here, even where SentencePiece would not.
        text = tokenizer_json(model, add_bos=False, checked=False)
    encoder = tokenizers.Tokenizer.from_str(text)
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = False
    known = {token.content for token in encoder.get_added_tokens_decoder().values()}
    for name in set(tokens.values()) - known:
        if encoder.token_to_id(name) is not None:
            encoder.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
    return encoder


class _Generation(Extension):
    """The tag `generation`, which marks the answers of a template. Its body is rendered as if the tag were absent."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """See `Extension`."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    """Returns Jinja's sandbox with what transformers offers to templates."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    found.filters["tojson"] = _tojson
    found.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return found


def _raise(message: str) -> Never:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own escapes HTML
