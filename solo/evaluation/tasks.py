"""Tasks: the last answer of a conversation is removed, and the model's answer is compared with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from solo.config import ConfigError, EvaluationConfig, TaskConfig
from solo.data.record import Image, Record, Turn, blank
from solo.evaluation.metrics import character_error_rate, exact_match
from solo.inference.monolith import Monolith
from solo.training.evaluators import TRAINED

METRICS = {"exact_match": exact_match, "character_error_rate": character_error_rate}

ProgressCallback = Callable[[str, int, int], None]


class Records(Protocol):
    """The records of a task: a prepared source, or anything with records by number."""

    def __len__(self) -> int: ...

    def read(self, number: int, /) -> Record:
        """Record `number`, from 0."""
        ...


@dataclass(frozen=True)
class Example:
    """A question with its answers. `blanked` is the answer with blanked images, if the task asks for it."""

    id: str
    prompt: tuple[Turn, ...]
    reference: str
    answer: str
    blanked: str | None = None


@dataclass(frozen=True)
class TaskResult:
    """The result of a task.

    score        percent of right answers, or the character error rate in percent
    score_blank  the score with all images blanked, if the task asks for it
    count        number of examples
    seconds      spent answering, compilation included
    examples     the first examples, not selected, for the report
    weights      the weights that answered: `trained`, or the name of an average
    """

    task: str
    metric: Literal["exact_match", "character_error_rate"]
    score: float
    score_blank: float | None
    count: int
    seconds: float
    examples: tuple[Example, ...]
    weights: str = TRAINED

    @property
    def gain(self) -> float | None:
        """The gain from images in points, MMStar's multi-modal gain (arXiv 2403.20330). Positive if the images help."""
        if self.score_blank is None:
            return None
        gain = self.score - self.score_blank
        return gain if self.metric == "exact_match" else -gain


def evaluate(
    model: Monolith,
    config: EvaluationConfig,
    sources: Mapping[str, Records],
    progress: ProgressCallback | None = None,
) -> list[TaskResult]:
    """Answers all tasks of the config, in its order, with greedy decoding.

    Args:
        model: the model to evaluate.
        config: the tasks, and how many examples of each to keep for the report.
        sources: records by source name.
        progress: called with (task, answered, total) after every batch. With blanked images, an example counts twice.

    Raises:
        ConfigError: a task's source is missing or empty, or one of its records has no answer.
    """
    return [
        evaluate_task(model, name, task, sources, config.report_examples, progress)
        for name, task in config.tasks.items()
    ]


def evaluate_task(
    model: Monolith,
    name: str,
    task: TaskConfig,
    sources: Mapping[str, Records],
    keep: int,
    progress: ProgressCallback | None,
) -> TaskResult:
    """Answers one task; see `evaluate`. Keeps the first `keep` examples."""
    asked = questions(name, task, sources)
    started = time.perf_counter()
    total = len(asked) * (1 + task.blank_images)

    def answers(prompts: Sequence[tuple[Turn, ...]], before: int) -> list[str]:
        return model.generate(
            prompts,
            task.max_new_tokens,
            batch_rows=task.batch_rows,
            progress=(lambda done, _: progress(name, before + done, total)) if progress else None,
        )

    written = answers([question.prompt for question in asked], 0)
    examples = [replace(question, answer=text) for question, text in zip(asked, written, strict=True)]
    references = [example.reference for example in examples]
    score, score_blank = METRICS[task.metric](written, references), None
    if task.blank_images:
        blanked = answers([blank_images(example.prompt) for example in examples], len(examples))
        examples = [replace(example, blanked=text) for example, text in zip(examples, blanked, strict=True)]
        score_blank = METRICS[task.metric](blanked, references)
    seconds = time.perf_counter() - started
    return TaskResult(name, task.metric, score, score_blank, len(examples), seconds, tuple(examples[:keep]))


def questions(name: str, task: TaskConfig, sources: Mapping[str, Records], most: int | None = None) -> list[Example]:
    """Returns the first `most` examples of a task, without answers.

    Raises:
        ConfigError: the source is missing or empty, or one of its records has no answer.
    """
    if task.source not in sources:
        raise ConfigError(
            f"evaluation task {name!r}: source {task.source!r} is not prepared; prepared are {list(sources)}"
        )
    source = sources[task.source]
    count = len(source) if task.limit is None else min(task.limit, len(source))
    if not count:
        raise ConfigError(f"evaluation task {name!r}: source {task.source!r} has no records")
    found = []
    for number in range(count if most is None else min(most, count)):
        record = source.read(number)
        try:
            prompt, reference = split_answer(record.turns)
        except ValueError as error:
            raise ConfigError(
                f"evaluation task {name!r}: record {record.id!r} of source {task.source!r}: {error}"
            ) from None
        found.append(Example(record.id, prompt, reference, answer=""))
    return found


def split_answer(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], str]:
    """Splits a conversation into the prompt and the answer that the model has to write.

    The answer is the last assistant turn. Without one, it is the text after the last image in the last turn of role
    `text` that has an image.

    Raises:
        ValueError: the conversation has no such turn, or the answer is not plain text.
    """
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    captions = [place for place, turn in enumerate(turns) if turn.role == "text" and _images(turn)]
    if answers:
        place, shown = answers[-1], 0
    elif captions:
        place = captions[-1]
        shown = _images(turns[place])[-1] + 1
    else:
        raise ValueError("it has no assistant turn, and no text after an image: there is no answer to ask for")
    turn = turns[place]
    answer = turn.content[shown:]
    if not answer or not all(isinstance(part, str) for part in answer):
        raise ValueError(f"its last answer (turn {place}) is not plain text")
    prompt = (*turns[:place], Turn(turn.role, turn.content[:shown]))
    return prompt, "".join(part for part in answer if isinstance(part, str))


def blank_images(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Returns the conversation with every image replaced by a uniform one of its size."""
    return tuple(
        replace(turn, content=tuple(blank(part) if isinstance(part, Image) else part for part in turn.content))
        for turn in turns
    )


def _images(turn: Turn) -> list[int]:
    return [place for place, part in enumerate(turn.content) if isinstance(part, Image)]
