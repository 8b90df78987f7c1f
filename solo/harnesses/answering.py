"""Code that the models of all harnesses share: loading, decoding settings, and answers in the order of requests."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import solo
from solo.evaluation.scoring.fitting import fitted
from solo.inference.decoding import Decoding
from solo.inference.monolith import Monolith, parse
from solo.inference.prompt import Conversation, in_order
from solo.training.evaluators import TRAINED

# Rows of this many batches share one padded shape. A larger number means fewer compilations and more padding.
_BATCHES = 16


@dataclass(frozen=True)
class Settings:
    """Decoding settings of one request.

    Attributes:
        max_new_tokens: maximum length of an answer.
        temperature: 0 is greedy.
        top_p: see `solo.inference.decoding.Decoding`.
        until: stop strings. The answer is cut before the first of them.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    until: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any], max_new_tokens: int) -> Settings:
        """Reads the generation settings of a task, which have the names that transformers uses.

        Args:
            given: settings of the task. None means that a setting is not given.
            max_new_tokens: default for tasks that do not set it.

        Raises:
            ValueError: a setting is unknown, or asks for something other than greedy decoding or sampling.
        """
        held = {key: value for key, value in given.items() if value is not None}
        limit = held.pop("max_new_tokens", None) or held.pop("max_gen_toks", None) or max_new_tokens
        until = held.pop("until", ())
        temperature = float(held.pop("temperature", 1.0 if held.get("do_sample") else 0.0))
        if not held.pop("do_sample", temperature > 0):
            temperature = 0.0
        top_p = float(held.pop("top_p", 1.0))
        if held.pop("num_beams", 1) != 1:
            raise ValueError("solo has no beam search: set num_beams to 1 (lmms-eval: --gen_kwargs num_beams=1)")
        # These have no effect: every answer ends at a stop token, and decoding always uses the KV cache.
        for name in ("use_cache", "image_aspect_ratio"):
            held.pop(name, None)
        if held:
            raise ValueError(f"solo does not know the generation settings {', '.join(sorted(held))}")
        stops = (until,) if isinstance(until, str) else tuple(until)
        return cls(int(limit), temperature, top_p if temperature else 1.0, tuple(text for text in stops if text))

    def cut(self, answer: str) -> str:
        """Returns the answer up to the first text of `until`, without the white space around it."""
        return min((answer.partition(text)[0] for text in self.until), key=len, default=answer).strip()


class Answering:
    """A model that answers the requests of a harness.

    Args:
        pretrained: a run, one of its checkpoints, or a repository; see `solo.load`.
        weights: for a run, `trained` or the name of an average.
        batch_size: maximum number of requests that are answered together.
        seed: seed for tasks that sample.
        context: maximum number of patches and text tokens in a sequence; None: see `TrainedModel.context`.
    """

    def __init__(
        self, pretrained: str, weights: str = TRAINED, batch_size: int = 1, seed: int = 0, context: int | None = None
    ):
        self.model: Monolith = solo.load(pretrained, weights=weights)
        self.batch_size, self.seed = batch_size, seed
        self.context = context or self.model.context

    def answer(self, requests: Sequence[tuple[Conversation, Settings]], first: int = 0) -> list[str]:
        """Answers conversations with their settings. Requests with the same settings are answered together.

        Args:
            requests: conversations as in `Monolith.generate`, and their settings.
            first: number of the first request in the task. Sampling depends on it, so that repeated requests differ.

        Raises:
            ValueError: a request cannot be answered, for example because it has a video.
        """
        groups: dict[Settings, list[int]] = {}
        for number, (_, settings) in enumerate(requests):
            groups.setdefault(settings, []).append(number)
        answers: dict[int, str] = {}
        for settings, numbers in groups.items():
            written = self._write([requests[number][0] for number in numbers], settings, self.seed + first)
            answers |= {number: settings.cut(text) for number, text in zip(numbers, written, strict=True)}
        return [answers[number] for number in range(len(requests))]

    def _write(self, conversations: Sequence[Conversation], settings: Settings, seed: int) -> list[str]:
        """Answers conversations as `solo evaluate` does: if a prompt does not fit, its images are made smaller.

        If it still does not fit, its answer is empty. An answer takes at most half of a sequence, because harnesses may
        request answers that are longer than the sequences of a small model.
        """
        model, limit = self.model, settings.max_new_tokens
        limit = limit if self.context is None else max(1, min(limit, self.context // 2))
        prompts = [model.runs(turns, open_turn=True) for turns in parse(conversations)]
        fit = fitted(prompts, model.config.image, self.context, limit)
        for count, what in (
            (len(fit.smaller), "do not fit the model's longest sequence, and their images were made smaller"),
            (len(fit.too_long), "do not fit the model's longest sequence at all; their answers are empty"),
        ):
            if count:
                print(f"solo: {count} of {len(prompts)} prompts {what}", file=sys.stderr)
        if not fit.fits:
            return [""] * len(prompts)
        rows = model.answered_together(len(fit.fits), self.batch_size)
        plan = fit.batches(in_order, rows, model.mesh.shape["context"])
        decoding = Decoding(limit, settings.temperature, settings.top_p)
        written = dict.fromkeys(range(len(prompts)), "")
        for batch, answers in model.answer(prompts, plan, rows, decoding, seed=seed, smaller=fit.smaller):
            written |= {number: answer.text for number, answer in zip(batch.numbers, answers, strict=True)}
        return list(written.values())

    @property
    def chunk(self) -> int:
        """Number of requests whose images are in memory at a time."""
        return self.batch_size * _BATCHES
