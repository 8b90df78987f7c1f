"""The logic of `solo chat` without its page: limits, the conversation, and the views of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from solo.chat.pictures import CutImage, cut_images
from solo.data.readers.image_files import load_image
from solo.data.record import Image
from solo.inference.monolith import Monolith
from solo.inference.prompt import slots
from solo.inference.streaming import StreamedAnswer


@dataclass(frozen=True)
class Limits:
    """Limits of a question.

    images      maximum number of images in a conversation
    image_mb    maximum size of an image file in megabytes
    characters  maximum number of characters in a question
    slots       maximum number of patches and text tokens in a conversation, including the answer
    """

    images: int = 8
    image_mb: int = 20
    characters: int = 8_000
    slots: int = 16_384


@dataclass
class Chat:
    """One conversation with a model. `messages` contains the turns so far, and `answer` the last answer."""

    model: Monolith
    limits: Limits = field(default_factory=Limits)
    messages: list[dict[str, Any]] = field(default_factory=list)
    answer: StreamedAnswer | None = None
    images: list[CutImage] = field(default_factory=list)

    def ask(self, text: str, files: Sequence[str | Path], max_new_tokens: int) -> StreamedAnswer:
        """Returns the answer to the next question. Generate it with `StreamedAnswer.write`, then call `keep`.

        Args:
            text: the question.
            files: images that precede the question.
            max_new_tokens: maximum length of the answer.

        Raises:
            ValueError: the question is empty or exceeds a limit, or an image cannot be read. The conversation is
                unchanged.
        """
        limits = self.limits
        if not text.strip() and not files:
            raise ValueError("The question is empty.")
        if len(text) > limits.characters:
            raise ValueError(f"The question has {len(text):,} characters; the limit is {limits.characters:,}.")
        already = sum(isinstance(part, Image) for message in self.messages for part in message["content"])
        if already + len(files) > limits.images:
            raise ValueError(
                f"The conversation would have {already + len(files)} images; the limit is {limits.images}."
            )
        content: list[Any] = [self._image(Path(file)) for file in files]
        question = {"role": "user", "content": [*content, text] if text.strip() else content}
        answer = StreamedAnswer(self.model, [*self.messages, question])
        needed = sum(slots(answer.document)) + max_new_tokens
        if needed > limits.slots:
            raise ValueError(
                f"The conversation would take {needed:,} tokens with its answer; the limit is {limits.slots:,}."
                " Begin another, or use smaller images."
            )
        self.messages.append(question)
        self.answer = answer
        self.images = cut_images(answer.document, self.model.config.image)
        return answer

    def keep(self) -> None:
        """Appends the text of the last answer so far to the conversation, as a turn."""
        if self.answer is not None:
            self.messages.append({"role": "assistant", "content": [self.answer.text]})

    def _image(self, file: Path) -> Image:
        size = file.stat().st_size
        if size > self.limits.image_mb * 1_000_000:
            raise ValueError(
                f"{file.name} has {size / 1e6:,.1f} MB; an image may have at most {self.limits.image_mb} MB."
            )
        image = load_image(str(file))
        try:
            image.decode()
        except OSError as error:
            raise ValueError(f"{file.name} cannot be read: {error}") from None
        return image

    def gridded(self) -> list[tuple[PillowImage.Image, str]]:
        """Returns each image with lines between its patches, and a caption."""
        return [(image.with_grid(), image.caption) for image in self.images]

    def tokens(self) -> list[str]:
        """Returns the tokens of the answer for display, numbered from 1."""
        written = self.answer.written if self.answer else []
        return [f"{number}: {self._shown(each.token)}" for number, each in enumerate(written, 1)]

    def likelihoods(self) -> list[list[str]]:
        """Returns a row for each token of the answer: the token, its probability, and the most likely tokens."""
        return [
            [
                shown,
                f"{each.probability:.1%}",
                ", ".join(f"{self._shown(token)} {share:.1%}" for token, share in each.likely),
            ]
            for shown, each in zip(self.tokens(), self.answer.written if self.answer else [], strict=True)
        ]

    def attended(self, layer: int, head: int | None, token: int | None) -> tuple[list[tuple[Any, str]], str]:
        """Returns the images with the patches that the answer attended to, and a sentence that sums up the weights.

        Args:
            layer: number of the layer, from 0.
            head: number of the head, from 0; None: the mean over all heads.
            token: number of a token of the answer, from 0; None: the mean over all tokens.
        """
        if self.answer is None or not self.answer.written:
            return [], "Ask something first."
        weights_AHN = self.answer.attention(layer)
        chosen = weights_AHN if token is None else weights_AHN[token : token + 1]
        weights_N = (chosen.mean(axis=1) if head is None else chosen[:, head]).mean(axis=0)
        patches = len(self.answer.document.patches)
        shares = [float(weights_N[image.slots].sum()) for image in self.images]
        pictures = [
            (image.with_weights(weights_N[:patches]), f"{share:.0%} on image {number}")
            for number, (image, share) in enumerate(zip(self.images, shares, strict=True), 1)
        ]
        which = "the whole answer" if token is None else f"token {self.tokens()[token]}"
        heads = "all heads" if head is None else f"head {head + 1}"
        about = f"Layer {layer + 1}, {heads}, {which}: {float(weights_N[:patches].sum()):.1%} of the attention is on"
        return pictures, f"{about} patches, {float(np.sum(weights_N[patches:])):.1%} on text."

    def _shown(self, token: int) -> str:
        return repr(self.model.tokenizer.token(token))[1:-1]
