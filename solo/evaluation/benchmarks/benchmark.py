"""The definition of a benchmark: its fields, its prompts, how answers are judged, and the metrics that are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from solo.data.record import Turn
from solo.evaluation.benchmarks.fields import Fields
from solo.evaluation.benchmarks.item import Convention, Item, Judged, Question, Scored, Verdict
from solo.evaluation.benchmarks.metric import Mean, Metric, one_per_value

ACCURACY = Mean()
Judge = Callable[[Item, str], Verdict]
Grade = Callable[[Sequence[tuple[Question, str]]], list[Scored]]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark under one convention.

    name            of the task, such as `pope` or `pope_vlmevalkit`
    title           as papers write it
    convention      the harness whose prompt and scoring it follows
    fields          the columns of an item
    ask             returns the prompt of an item
    judge_one       judges an answer, if answers can be judged one by one
    metric          the headline metric
    max_new_tokens  maximum length of an answer
    rotations       returns an item with its options in every order that is asked; by default only the item itself
    groups          labels by which scores are also reported
    further         further metrics of all items
    judge_all       judges all answers together, in place of `judge_one`
    files           names of its files as they are published, without suffix
    dataset         name of its files, which conventions share; by default the name
    """

    name: str
    title: str
    convention: Convention
    fields: Fields
    ask: Callable[[Item], tuple[Turn, ...]]
    judge_one: Judge | None = None
    metric: Metric = ACCURACY
    max_new_tokens: int = 16
    rotations: Callable[[Item], Sequence[Item]] = lambda item: (item,)
    groups: tuple[str, ...] = ()
    further: tuple[Metric, ...] = ()
    judge_all: Grade | None = None
    files: tuple[str, ...] = ()
    dataset: str = ""

    def __post_init__(self) -> None:
        if (self.judge_one is None) == (self.judge_all is None):
            raise ValueError(f"benchmark {self.name!r} needs judge_one or judge_all")
        if not self.dataset:
            object.__setattr__(self, "dataset", self.name)

    def read(self, paths: Sequence[str], left_out: Callable[[str], None] = lambda reason: None) -> Iterator[Item]:
        """Yields the items of files or folders, in any layout that the benchmark is published in.

        Only the headers of images are read: an image may still turn out to be damaged when it is decoded.

        Args:
            paths: TSV, parquet and Arrow files, and folders of them.
            left_out: called with the reason for every row that is left out, such as one of another split.

        Raises:
            ConfigError: a file or row cannot be used; the message names file, row and column.
        """
        yield from self.fields.items(paths, f"benchmark {self.name!r}", left_out)

    def questions(self, item: Item) -> tuple[Question, ...]:
        """Returns the questions about an item: one, or one per rotation of its options."""
        return tuple(
            Question(turned, self.ask(turned), item.id if not number else f"{item.id}#{number}")
            for number, turned in enumerate(self.rotations(item))
        )

    def judge(self, answers: Sequence[tuple[Question, str]]) -> list[Scored]:
        """Judges answers, in their order. Pass all answers at once, because CIDEr weights words by their rarity."""
        if self.judge_all is not None:
            return self.judge_all(answers)
        judge = self.judge_one
        assert judge is not None
        # The plug-ins hand answers to the harnesses without the white space around them, too.
        return [Scored(question.key, answer, *judge(question.item, answer.strip())) for question, answer in answers]

    def summary(self, items: Sequence[Judged]) -> dict[str, float]:
        """Returns the headline first, under the metric's name, then further metrics, then `label/value` of each group.

        Raises:
            ValueError: there are no items.
        """
        if not items:
            raise ValueError("there are no judged items")
        found = {metric.name: metric.of(items) for metric in (self.metric, *self.further)}
        for label in self.groups:
            parts: dict[str, list[Judged]] = {}
            for item in items:
                for one in one_per_value(item, label):
                    if value := one.item.labels.get(label):
                        parts.setdefault(value, []).append(one)
            found |= {f"{label}/{value}": self.metric.of(part) for value, part in sorted(parts.items())}
        return found


def registry(benchmarks: Sequence[Benchmark]) -> Mapping[str, Benchmark]:
    """Returns benchmarks by name. Raises ValueError if two have the same."""
    found = {benchmark.name: benchmark for benchmark in benchmarks}
    if len(found) < len(benchmarks):
        names = [benchmark.name for benchmark in benchmarks]
        raise ValueError(f"two benchmarks are named {next(name for name in names if names.count(name) > 1)!r}")
    return found


def rotated(item: Item) -> Sequence[Item]:
    """Returns an item with its options in every cyclic order: those of the file, else all that there are.

    A benchmark is circular if an item is right only if it is answered right in all of them.
    """
    if item.variants:
        return (item, *item.variants)
    letters, texts = list(item.options), list(item.options.values())
    right = letters.index(item.references[0])
    return [
        replace(
            item,
            options=dict(zip(letters, texts[-shift:] + texts[:-shift], strict=True)) if shift else item.options,
            references=(letters[(right + shift) % len(letters)],),
        )
        for shift in range(len(letters))
    ]
