"""Answers the questions of a benchmark, and continues where an earlier call stopped.

The batches depend only on the prompts. A call that continues therefore computes the same batches as one that was never
stopped, and its answers are the same to the last bit. Identical prompts, which are common without images, are answered
once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from solo.config import ConfigError
from solo.data.record import Image, Turn
from solo.evaluation.benchmarks.benchmark import Benchmark
from solo.evaluation.benchmarks.item import Item, Judged, Question, Scored
from solo.evaluation.scoring.digest import check_finite, config_digest, prompt_digest, text_digest, weights_digest
from solo.evaluation.scoring.fitting import Fitted, fitted
from solo.evaluation.scoring.predictions import Images, Predictions, Settings
from solo.evaluation.tasks import blank_images
from solo.inference.decoding import Answer, Decoding
from solo.inference.monolith import Monolith
from solo.inference.prompt import Prompt, PromptBatch, by_length

Note = Callable[[int, int], None]
Line = dict[str, Any]
Answered = tuple[PromptBatch, list[Answer]]


@dataclass(frozen=True)
class Task:
    """A benchmark with its items.

    asked     the questions about each item, in the order of the items
    left_out  rows of the files that are no items of the benchmark, by reason
    """

    benchmark: Benchmark
    items: tuple[Item, ...]
    asked: tuple[tuple[Question, ...], ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        """All questions by key, in order."""
        return {question.key: question for questions in self.asked for question in questions}

    @cached_property
    def owners(self) -> Mapping[str, Item]:
        """The item of each question, by key. That of a rotation is the item with the options in their order."""
        pairs = zip(self.items, self.asked, strict=True)
        return {question.key: item for item, questions in pairs for question in questions}

    @classmethod
    def read(cls, benchmark: Benchmark, paths: Sequence[str], limit: int | None = None) -> Task:
        """Reads the first `limit` items of a benchmark's files. Images that several items share are held once.

        Raises:
            ConfigError: a file or row cannot be used, there is no item, or two have the same id.
        """
        items: dict[str, Item] = {}
        images: dict[bytes, Image] = {}
        left_out: Counter[str] = Counter()
        for item in benchmark.read(paths, lambda reason: left_out.update([reason])):
            if item.id in items:
                raise ConfigError(f"{benchmark.name}: two items have the id {item.id!r}")
            items[item.id] = _sharing(item, images)
            if len(items) == limit:
                break
        if not items:
            raise ConfigError(f"{benchmark.name}: {', '.join(map(str, paths))} holds no items")
        return cls(benchmark, tuple(items.values()), tuple(map(benchmark.questions, items.values())), dict(left_out))

    def judged(self, lines: Sequence[Line]) -> tuple[list[Line], list[Judged]]:
        """Judges the answers of a model.

        Args:
            lines: predictions, one for each question, in their order.

        Returns:
            the lines with their scores, and the items with their judged answers.
        """
        scored = self.benchmark.judge(
            [(question, line["answer"]) for question, line in zip(self.questions.values(), lines, strict=True)]
        )
        by_key = {each.key: each for each in scored}
        judged = [
            Judged(item, tuple(by_key[question.key] for question in questions))
            for item, questions in zip(self.items, self.asked, strict=True)
        ]
        asked = zip(self.questions.values(), lines, scored, strict=True)
        # The references may have changed since the question was answered.
        return [with_score({**line, **_facts(question.item)}, each) for question, line, each in asked], judged


def _facts(item: Item) -> Line:
    """Returns what a prediction repeats of its item."""
    return {"references": list(item.references), "options": dict(item.options), "labels": dict(item.labels)}


def with_score(line: Line, scored: Scored) -> Line:
    """Returns a prediction with what was found in its answer."""
    return {**line, "extracted": scored.extracted, "score": scored.score, "guessed": scored.guessed}


def _sharing(item: Item, images: dict[bytes, Image]) -> Item:
    """Returns an item in which images that equal those of other items are the same objects."""
    shared = tuple(images.setdefault(image.data, image) for image in item.images)
    return replace(item, images=shared, variants=tuple(_sharing(each, images) for each in item.variants))


@dataclass(frozen=True)
class Asking:
    """A model that answers.

    name       how it was named
    context    the most patches and text tokens of a sequence; None: there is no limit
    """

    model: Monolith
    name: str
    weights: str
    config: str
    context: int | None
    batch_rows: int

    @classmethod
    def of(cls, model: Monolith, name: str, context: int | None, batch_rows: int) -> Asking:
        """Computes the digests of a model. Raises ConfigError if its weights are not numbers."""
        check_finite(model, name)
        return cls(model, name, weights_digest(model), config_digest(model), context, batch_rows)

    def settings(self, benchmark: Benchmark, images: Images, max_new_tokens: int | None) -> Settings:
        """Returns the settings that determine the answers."""
        longest = max_new_tokens or benchmark.max_new_tokens
        return Settings(benchmark.name, benchmark.convention, images, longest, self.weights, self.config, self.name)


def answer(asking: Asking, task: Task, settings: Settings, file: Predictions, force: bool, note: Note) -> list[Line]:
    """Answers the questions of a task that a file of predictions lacks.

    Args:
        asking: the model.
        task: the benchmark.
        settings: settings of the file.
        file: known answers; new ones are appended after every batch.
        force: replace answers to other prompts.
        note: called with (answered, all) before the first and after every batch.

    Returns:
        A line for each question, in their order, without scores.

    Raises:
        ConfigError: the file answers other prompts, or an image cannot be read.
    """
    try:
        asked = _asked(asking, task, settings)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{task.benchmark.name}: {asking.name}: {error}") from None
    file.check(asked.digests, force)
    known = file.known
    for number in sorted(asked.fit.too_long):
        known |= {each["key"]: each for each in asked.lines(number, Answer("", 0, False))}
    plan, rows = _plan(asking, asked, known)
    if plan:
        with closing(file.open()) as lines:
            done, every = sum(key in known for key in asked.digests), len(asked.digests)
            note(done, every)
            decoding = Decoding(settings.max_new_tokens)
            answered = asking.model.answer(asked.prompts, plan, rows, decoding, smaller=asked.fit.smaller)
            for batch, answers in _located(answered, asked):
                for number, each in zip(batch.numbers, answers, strict=True):
                    new = [line for line in asked.lines(number, each) if line["key"] not in known]
                    for line in new:
                        lines.write(line)
                        known[line["key"]] = line
                    done += len(new)
                note(done, every)
            lines.sync()
    return [known[key] for key in asked.digests]


def _plan(asking: Asking, asked: _Asked, known: Mapping[str, Line]) -> tuple[list[PromptBatch], int]:
    """Returns the batches with a prompt that lacks an answer, and their rows. Known answers do not change a batch."""
    fits = asked.fit.fits
    missing = {number for number in fits if any(key not in known for key in asked.keys[number])}
    if not missing:
        return [], 0
    rows = asking.model.answered_together(len(fits), asking.batch_rows)
    plan = asked.fit.batches(by_length, rows, asking.model.mesh.shape["context"])
    return [batch for batch in plan if missing.intersection(batch.numbers)], rows


def _located(answered: Iterator[Answered], asked: _Asked) -> Iterator[Answered]:
    """Yields batches of answers. An image that cannot be decoded is named by its question, file and row."""
    try:
        yield from answered
    except ValueError as error:
        found = re.match(r"conversation (\d+): (.*)", str(error), re.DOTALL)
        if found is None:
            raise
        key = asked.keys[int(found[1])][0]
        place = asked.task.owners[key].place
        where = f" ({place.file}, row {place.line})" if place is not None else ""
        raise ConfigError(f"{asked.task.benchmark.name}: question {key!r}{where}: {found[2]}") from None


@dataclass(frozen=True)
class _Asked:
    """The prompts of a task for a model.

    turns    the prompt of each question, by key
    digests  digests of the prompts, by key, in the order of the questions
    prompts  the distinct prompts, tokenized
    keys     for each distinct prompt, the keys of its questions
    fit      how the distinct prompts fit the longest sequence
    """

    task: Task
    settings: Settings
    turns: Mapping[str, Sequence[Turn]]
    digests: Mapping[str, str]
    prompts: Sequence[Prompt]
    keys: Sequence[Sequence[str]]
    fit: Fitted

    def lines(self, number: int, answer: Answer) -> list[Line]:
        """Returns the lines of the questions with a distinct prompt."""
        return [self._line(key, number, answer) for key in self.keys[number]]

    def _line(self, key: str, number: int, answer: Answer) -> Line:
        question = self.task.questions[key]
        line = {
            "kind": "prediction",
            "task": self.settings.task,
            "key": key,
            "id": self.task.owners[key].id,
            "prompt": prompt_text(self.turns[key]),
            "prompt_digest": self.digests[key],
            "answer": answer.text,
            "extracted": None,
            "score": None,
            "guessed": False,
            **_facts(question.item),
            "tokens": answer.tokens,
            "cut": answer.cut,
            "shrunk": number in self.fit.smaller,
            "too_long": number in self.fit.too_long,
            "convention": self.settings.convention,
            "images": self.settings.images,
            "model": self.settings.model,
            "weights": self.settings.weights,
        }
        if self.task.benchmark.judge_one is None:
            return line
        (scored,) = self.task.benchmark.judge([(question, answer.text)])
        return with_score(line, scored)


def _asked(asking: Asking, task: Task, settings: Settings) -> _Asked:
    turns = {question.key: as_shown(question.prompt, settings.images) for question in task.questions.values()}
    images: dict[bytes, str] = {}
    keys: dict[str, list[str]] = {}
    for key, prompt in turns.items():
        keys.setdefault(prompt_digest(prompt, images), []).append(key)
    prompts: list[Prompt] = [asking.model.runs(turns[first], open_turn=True) for first, *_ in keys.values()]
    fit = fitted(prompts, asking.model.config.image, asking.context, settings.max_new_tokens)
    digests = {
        key: _as_fitted(digest, number, fit) for number, (digest, same) in enumerate(keys.items()) for key in same
    }
    return _Asked(task, settings, turns, {key: digests[key] for key in turns}, prompts, list(keys.values()), fit)


def _as_fitted(digest: str, number: int, fit: Fitted) -> str:
    """Returns the digest of a prompt as it was made to fit: with smaller images, or left out as too long."""
    if number in fit.too_long:
        how = "too long"
    elif number in fit.smaller:
        how = fit.smaller[number].model_dump_json()
    else:
        return digest
    return text_digest(f"{digest} {how}")


def prompt_text(turns: Sequence[Turn]) -> str:
    """Returns a prompt as it is written: `<image>` for an image, and the roles if there are several turns."""
    texts = ["".join(part if isinstance(part, str) else "<image>" for part in turn.content) for turn in turns]
    if len(turns) == 1:
        return texts[0]
    return "\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, texts, strict=True))


def as_shown(turns: Sequence[Turn], images: Images) -> tuple[Turn, ...]:
    """Returns a prompt with its images, without them, or with uniform grey ones of their sizes."""
    if images == "shown":
        return tuple(turns)
    return blank_images(turns) if images == "blanked" else without_images(turns)


def without_images(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Returns a prompt without its images, and without the line breaks between them and the text."""
    found = []
    for turn in turns:
        content: list[str] = []
        after_image = False
        for part in turn.content:
            if isinstance(part, str):
                content.append(part.lstrip("\n") if after_image else part)
            after_image = isinstance(part, Image)
        if any(content) or not turn.content:
            found.append(replace(turn, content=tuple(part for part in content if part)))
    return tuple(found)
