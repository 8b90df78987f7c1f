"""The definition of a benchmark: where its fields are, how it is asked, how an answer is judged, what is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from solo.data.record import Turn
from solo.evaluation.benchmarks.item import Convention, Item, Judged, Question, Scored
from solo.evaluation.benchmarks.metric import Metric


@dataclass(frozen=True)
class Benchmark:
    """A benchmark under one convention.

    name            of the task, such as `pope` or `pope_vlmevalkit`
    dataset         name of its files; conventions share it
    title           as papers write it
    convention      whose prompt and scoring it follows
    metric          the headline
    max_new_tokens  enough for an answer
    ask             returns the prompt of an item
    grade           judges all answers
    items           reads the items of files
    rotations       returns an item with its options in every order that is asked; by default as it is
    groups          the labels that scores are also given for
    further         more metrics of all items
    """

    name: str
    dataset: str
    title: str
    convention: Convention
    metric: Metric
    max_new_tokens: int
    ask: Callable[[Item], tuple[Turn, ...]]
    grade: Callable[[Sequence[tuple[Question, str]]], list[Scored]]
    items: Callable[[Sequence[str]], Iterator[Item]]
    rotations: Callable[[Item], Sequence[Item]] = lambda item: (item,)
    groups: tuple[str, ...] = ()
    further: tuple[Metric, ...] = ()

    def read(self, paths: Sequence[str]) -> Iterator[Item]:
        """Yields the items of files or folders, in any of the layouts that the benchmark is published in.

        Raises:
            ConfigError: a file or row cannot be used; the message names file, row and column.
        """
        return self.items(paths)

    def questions(self, item: Item) -> tuple[Question, ...]:
        """Returns what is asked about an item: one question, or one per rotation of its options."""
        return tuple(
            Question(turned, self.ask(turned), item.id if not number else f"{item.id}#{number}")
            for number, turned in enumerate(self.rotations(item))
        )

    def judge(self, answers: Sequence[tuple[Question, str]]) -> list[Scored]:
        """Judges answers, in their order. Captions need all of the benchmark's: a word counts more if it is rarer."""
        return self.grade(answers)

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
                if value := item.item.labels.get(label):
                    parts.setdefault(value, []).append(item)
            found |= {f"{label}/{value}": self.metric.of(part) for value, part in sorted(parts.items())}
        return found


def registry(benchmarks: Sequence[Benchmark]) -> Mapping[str, Benchmark]:
    """Returns benchmarks by name. Raises ValueError if two have the same."""
    found: dict[str, Benchmark] = {}
    for benchmark in benchmarks:
        if benchmark.name in found:
            raise ValueError(f"two benchmarks are named {benchmark.name!r}")
        found[benchmark.name] = benchmark
    return found
