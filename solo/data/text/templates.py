"""Chat templates, which convert conversations to tokens. No other code depends on their details.

A template defines the tokens that begin and end a turn, its loss mask, and the tokens that end an answer. With every
template, the loss covers the content of `assistant` and `text` turns, unless the turn says otherwise, and no other
content. No template adds markup to a `text` turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np

from solo.config import ConfigError, SequenceConfig
from solo.data.record import Image, Turn
from solo.data.text import SPECIAL_TOKENS, Tokenizer


@dataclass(frozen=True, slots=True)
class TextRun:
    """Consecutive tokens, all or none of them supervised: a tuple, or an array if they come from the store."""

    tokens: tuple[int, ...] | np.ndarray
    supervised: bool


class _Text(NamedTuple):
    """A text run before tokenization."""

    text: str
    supervised: bool


Runs = list[TextRun | Image]
_Layout = list[TextRun | Image | _Text]


class Template(ABC):
    """A chat template.

    Attributes:
        special_tokens: special tokens that the template needs.
        takes_system: whether the template supports a system turn.
        closing: tokens after an answer; if there are any, the first one ends the answer.
        more_stops: additional tokens that stop generation.
    """

    special_tokens: ClassVar[tuple[str, ...]] = ()
    takes_system: ClassVar[bool] = True
    closing: tuple[int, ...]
    more_stops: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer, system: str | None = None) -> None:
        self._tokenizer, self._system = tokenizer, system
        self._ids = {token: tokenizer.id(token, "sequence.template") for token in self.special_tokens}
        self.closing = (tokenizer.special.eos,)
        bos, eos = tokenizer.special.bos, tokenizer.special.eos
        self._begin: _Layout = [] if bos is None else [TextRun((bos,), False)]
        self._end = {learned: TextRun((eos,), learned) for learned in (False, True)}

    @property
    def unknown(self) -> int | None:
        """The unknown token, if the vocabulary has one."""
        return self._tokenizer.unknown

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that stop generation: the first of `closing`, the end-of-text token, and `more_stops`."""
        return tuple(dict.fromkeys([*self.closing[:1], self._tokenizer.special.eos, *self.more_stops]))

    def runs(self, turns: Sequence[Turn], open_turn: bool = False, continued: bool = False) -> Runs:
        """Tokenizes turns.

        Args:
            turns: turns of one document.
            open_turn: leave the last turn open for generation: no tokens end it, and after a `user` or `system` turn
                the tokens that begin an answer are added.
            continued: the turns continue a document whose beginning the model has already processed.

        Raises:
            ValueError: the template does not support a turn, or a text cannot be encoded.
        """
        return _filled(self._layout(turns, open_turn, continued), self._tokenizer.encode)

    def batch_runs(self, documents: Sequence[Sequence[Turn]]) -> list[Runs | ValueError]:
        """Tokenizes many documents in one call of the tokenizer, each distinct text once.

        Returns:
            For each document, the runs that `runs` returns or the error that it raises.
        """
        layouts = [self._try_layout(turns) for turns in documents]
        texts = dict.fromkeys(
            part.text for layout in layouts if isinstance(layout, list) for part in layout if isinstance(part, _Text)
        )
        encoded = dict(zip(texts, self._tokenizer.encode_batch(list(texts)), strict=True)).__getitem__
        return [layout if isinstance(layout, ValueError) else _try_filled(layout, encoded) for layout in layouts]

    def _try_layout(self, turns: Sequence[Turn]) -> _Layout | ValueError:
        try:
            return self._layout(turns, False, False)
        except ValueError as error:
            return error

    def _layout(self, turns: Sequence[Turn], open_turn: bool, continued: bool) -> _Layout:
        """Returns the runs before tokenization."""
        if self._system is not None and not continued:
            speakers = {turn.role for turn in turns} - {"text"}
            if speakers and "system" not in speakers:
                turns = [Turn("system", (self._system,)), *turns]
        found = [] if continued else self._opening()
        for number, turn in enumerate(turns):
            is_open = open_turn and number == len(turns) - 1
            first = number == 0 and not continued
            found += self._text(turn, first, is_open) if turn.role == "text" else self._turn(turn, first, is_open)
        return found

    def _opening(self) -> _Layout:
        """Returns the runs before the first turn."""
        return list(self._begin)

    @abstractmethod
    def _turn(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        """Returns the runs of a speaker's turn. `first` is true for the first turn of a document."""

    def _text(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        return [*self._parts(_unbroken(turn.content), turn.supervised), *self._closing(turn, is_open)]

    def _closing(self, turn: Turn, is_open: bool) -> _Layout:
        """Returns the runs that end an answer or a text."""
        return [] if is_open else [self._end[turn.supervised]]

    def _parts(self, content: Iterable[str | Image], supervised: bool) -> _Layout:
        """Returns each text as a separate run."""
        return [part if isinstance(part, Image) else self._run(part, supervised) for part in content]

    def _run(self, text: str, supervised: bool) -> _Text:
        return _Text(text, supervised)


class Roles(Template):
    """solo's own template: `<s>` begins the document, and a role token each turn. `</s>` ends an answer, supervised."""

    special_tokens = tuple(SPECIAL_TOKENS[role] for role in ("system", "user", "assistant"))

    def _turn(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        found = [self._role(turn.role), *self._parts(_unbroken(turn.content), turn.supervised)]
        if turn.role == "assistant":
            return [*found, *self._closing(turn, is_open)]
        return [*found, self._role("assistant")] if is_open else found

    def _role(self, role: str) -> TextRun:
        return TextRun((self._ids[SPECIAL_TOKENS[role]],), False)


class SoloPretrain(Template):
    """SOLO's pre-training: `<s>`, then the content of all turns, without markup or an end token.

    In SOLO's packed sequences, `<s>` separates documents (`tools/preprocess_multimodal_data.py` in
    xingyaoww/Megatron-LLM). It is not supervised.
    """

    takes_system = False

    def __init__(self, tokenizer: Tokenizer, system: str | None = None) -> None:
        super().__init__(tokenizer, system)
        self.closing = ()

    def _turn(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        return self._parts(_unbroken(turn.content), turn.supervised)

    def _closing(self, turn: Turn, is_open: bool) -> _Layout:
        return []


class SoloChat(Template):
    """SOLO's and SAIL's instruction tuning: images, `<s>`, `[INST] question [/INST]`, the answer, `</s>`.

    `<s>` comes after the images and only before the first question (`src/data/instruction_tuning.py` in
    Yangyi-Chen/SOLO). The images of a turn are moved to its start.
    """

    takes_system = False

    def _turn(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        opening = super()._opening() if first else []
        content = _unbroken(turn.content)
        if turn.role == "assistant":
            return [*opening, *self._parts(content, turn.supervised), *self._closing(turn, is_open)]
        if turn.role == "system":
            raise ValueError("the template has no place for a system turn")
        images = [part for part in content if isinstance(part, Image)]
        question = "".join(part for part in content if isinstance(part, str))
        return [*images, *opening, *self._question(question)]

    def _question(self, question: str) -> _Layout:
        return [self._run(f"[INST] {question} [/INST]", False)]

    def _opening(self) -> _Layout:
        return []

    def _text(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        return [*(super()._opening() if first else []), *super()._text(turn, first, is_open)]


class Fuyu(SoloChat):
    """Fuyu: images, `<s>`, the question, byte 4, the answer, and the end-of-text token.

    Byte 4 is a token of Fuyu's vocabulary. It is removed from texts.
    """

    def __init__(self, tokenizer: Tokenizer, system: str | None = None) -> None:
        super().__init__(tokenizer, system)
        found = tokenizer.find("<0x04>")
        if found is None:
            raise ConfigError("sequence.template needs the token '<0x04>', which the tokenizer does not have")
        self._answer = TextRun((found,), False)

    def _question(self, question: str) -> _Layout:
        return [self._run(question, False), self._answer]

    def _run(self, text: str, supervised: bool) -> _Text:
        return super()._run(text.replace("\x04", ""), supervised)


class InternLM2Chat(Template):
    """Mono-InternVL: `<|im_start|>role`, a line break, the message, `<|im_end|>`, and nothing after it.

    The answer and its `<|im_end|>` are supervised. As in the reference (`internvl/train/dataset.py` in
    OpenGVLab/Mono-InternVL), all unsupervised text between two special tokens is tokenized as one text. The answer is
    tokenized separately, as in generation.
    """

    special_tokens = ("<|im_start|>", "<|im_end|>")
    _after = ""
    _stripped = True
    _answerer = "assistant"

    def __init__(self, tokenizer: Tokenizer, system: str | None = None) -> None:
        super().__init__(tokenizer, system)
        self._starts, ends = (self._ids[token] for token in self.special_tokens)
        self.closing = (ends, *tokenizer.encode(self._after))

    @property
    def stops(self) -> tuple[int, ...]:
        """The token that ends a turn, the end-of-text token, and the token that starts a turn."""
        return (*super().stops, self._starts)

    def _turn(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        content = _strip(turn.content) if self._stripped else turn.content
        answers = turn.role == "assistant"
        body = (
            [self._run(f"{self._answerer}\n", False), *self._joined(content, turn.supervised)]
            if answers
            else self._joined([f"{turn.role}\n", *self._asked(turn, content)], False)
        )
        found = [self._start(), *body]
        if not is_open:
            found.append(TextRun(self.closing, turn.supervised))
        elif not answers:
            found += [TextRun(self.closing, False), self._start(), self._run(f"{self._answerer}\n", False)]
        return found

    def _asked(self, turn: Turn, content: Sequence[str | Image]) -> Sequence[str | Image]:
        """Returns the content of a user or system turn as the model reads it."""
        return _broken(content)

    def _start(self) -> TextRun:
        return TextRun((self._starts,), False)

    def _joined(self, content: Iterable[str | Image], supervised: bool) -> _Layout:
        """Joins adjacent texts."""
        joined: list[str | Image] = []
        for part in content:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part)
        return self._parts(joined, supervised)


class ChatML(InternLM2Chat):
    """Qwen: a line break, also supervised, follows `<|im_end|>`. Messages are not stripped."""

    _after = "\n"
    _stripped = False


class Gemma4(InternLM2Chat):
    """Gemma 4: `<|turn>role`, a line break, the message, `<turn|>` and a line break. The assistant's role is `model`.

    Messages are stripped, and images stay in place. The channel of thoughts is not used: neither its tokens in prompts,
    nor its removal from answers.
    """

    special_tokens = ("<|turn>", "<turn|>")
    _after = "\n"
    _answerer = "model"

    def _asked(self, turn: Turn, content: Sequence[str | Image]) -> Sequence[str | Image]:
        return content


class Neo(ChatML):
    """NEO's training: ChatML with images where they stand, and nothing added to them.

    A line break follows the image only if it is the document's only one and begins the first user turn, unless white
    space follows: the published code (`_get_item` in EvolvingLMMs-Lab/NEO) puts "<image>\\n" in front of a text
    without a placeholder. The published code also supervises images in answers; here, images are never targets.
    """

    def _layout(self, turns: Sequence[Turn], open_turn: bool, continued: bool) -> _Layout:
        images = sum(isinstance(part, Image) for turn in turns for part in turn.content)
        first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
        if images == 1 and first is not None and not continued:
            opening = replace(turns[first], content=tuple(_broken(turns[first].content)))
            turns = [*turns[:first], opening, *turns[first + 1 :]]
        return super()._layout(turns, open_turn, continued)

    def _asked(self, turn: Turn, content: Sequence[str | Image]) -> Sequence[str | Image]:
        return content


class Neo15(ChatML):
    """NEO 1.5's evaluation: a line break after every image, which stays in its place. Empty system turns are left out.

    A single image is moved to the start of its turn, and the texts of the turn are joined by line breaks. A line break
    that the data has after an image is not doubled. (`reorganize_prompt` of VLMEvalKit_ov in EvolvingLMMs-Lab/NEO)
    """

    def _turn(self, turn: Turn, first: bool, is_open: bool) -> _Layout:
        if turn.role == "system" and not any(turn.content) and not is_open:
            return []
        return super()._turn(turn, first, is_open)

    def _asked(self, turn: Turn, content: Sequence[str | Image]) -> Sequence[str | Image]:
        content = _without_break_after_images(content)
        images = [part for part in content if isinstance(part, Image)]
        if len(images) == 1 and turn.role == "user":
            return [*images, "\n", "\n".join(part for part in content if isinstance(part, str))]
        return self._several(content, images) if images else content

    def _several(self, content: Sequence[str | Image], images: Sequence[Image]) -> list[str | Image]:
        """Returns a message with several images."""
        found: list[str | Image] = []
        for part in content:
            found += [part, "\n"] if isinstance(part, Image) else [part]
        return found


class Neo10(Neo15):
    """NEO 1.0's evaluation: as `Neo15`, but several images are moved to the start of their turn and numbered.

    "Image-1: <image>\\nImage-2: <image>\\n" precedes the text, in which <Image-1> and <Image-2> stand in their places,
    unless all images follow one another. (`reorganize_prompt` of VLMEvalKit in EvolvingLMMs-Lab/NEO)
    """

    def _several(self, content: Sequence[str | Image], images: Sequence[Image]) -> list[str | Image]:
        numbers = iter(range(1, len(images) + 1))
        text = "".join(part if isinstance(part, str) else f"<Image-{next(numbers)}>" for part in content)
        together = "".join(f"<Image-{number}>" for number in range(1, len(images) + 1))
        opening = [part for number, image in enumerate(images, 1) for part in (f"Image-{number}: ", image, "\n")]
        return [*opening, text.replace(together, "")]


TEMPLATES: dict[str, type[Template]] = {
    "roles": Roles,
    "solo_pretrain": SoloPretrain,
    "solo_chat": SoloChat,
    "internlm2_chat": InternLM2Chat,
    "chatml": ChatML,
    "neo": Neo,
    "neo_1_0": Neo10,
    "neo_1_5": Neo15,
    "fuyu": Fuyu,
    "gemma4": Gemma4,
}


_Encode = Callable[[str], list[int]] | Callable[[str], list[int] | ValueError]


def _filled(layout: _Layout, encode: _Encode) -> Runs:
    """Tokenizes the texts of a layout. Omits runs without tokens, and raises the errors that `encode` returns."""
    found: Runs = []
    for part in layout:
        if isinstance(part, _Text):
            tokens = encode(part.text)
            if isinstance(tokens, ValueError):
                raise tokens
            if tokens:
                found.append(TextRun(tuple(tokens), part.supervised))
        elif isinstance(part, Image) or len(part.tokens):
            found.append(part)
    return found


def _try_filled(layout: _Layout, encode: _Encode) -> Runs | ValueError:
    try:
        return _filled(layout, encode)
    except ValueError as error:
        return error


def make_template(tokenizer: Tokenizer, config: SequenceConfig) -> Template:
    """Returns the template that a config names.

    Raises:
        ConfigError: the tokenizer lacks a token of the template, or the template does not support a system turn that
            the config sets.
    """
    kind = TEMPLATES[config.template]
    if config.system is not None and not kind.takes_system:
        raise ConfigError(f"sequence.system: template {config.template} has no place for a system turn")
    return kind(tokenizer, config.system)


def runs(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    open_turn: bool = False,
    config: SequenceConfig = SequenceConfig(),  # noqa: B008 - frozen
) -> Runs:
    """Tokenizes turns with the template that a config names; see `Template.runs`."""
    return make_template(tokenizer, config).runs(turns, open_turn)


def _unbroken(content: Sequence[str | Image]) -> list[str | Image]:
    """Removes the line breaks between texts and images, which LLaVA's data contains. SOLO removes them too."""
    found = list(content)
    if len(found) == 1:
        return found
    for place, part in enumerate(found):
        if isinstance(part, str):
            if place and isinstance(found[place - 1], Image):
                part = part.lstrip("\n")
            if place + 1 < len(found) and isinstance(found[place + 1], Image):
                part = part.rstrip("\n")
            found[place] = part
    return found


def _broken(content: Sequence[str | Image]) -> list[str | Image]:
    """Adds a line break after each image at the start of a message, as InternVL does, unless white space follows."""
    content = [part for part in content if part != ""]
    found: list[str | Image] = content[:1]
    opening = True
    for before, part in pairwise(content):
        opening = opening and isinstance(before, Image)
        if opening and not (isinstance(part, str) and part[:1].isspace()):
            found.append("\n")
        found.append(part)
    return found


def _without_break_after_images(content: Sequence[str | Image]) -> list[str | Image]:
    """Removes one line break after each image, which a template adds itself."""
    after_image = [False, *(isinstance(part, Image) for part in content)]
    return [
        part.removeprefix("\n") if isinstance(part, str) and after else part
        for part, after in zip(content, after_image, strict=False)
    ]


def _strip(content: Sequence[str | Image]) -> list[str | Image]:
    """Removes white space at both ends of a message."""
    found = list(content)
    if found and isinstance(found[0], str):
        found[0] = found[0].lstrip()
    if found and isinstance(found[-1], str):
        found[-1] = found[-1].rstrip()
    return found
