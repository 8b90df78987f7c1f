"""What the training loop knows of evaluation: when it is due, and that it yields lines for `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from solo.config.base import Section
from solo.config.compare import keys_deciding
from solo.config.evaluation import HeldOutConfig, TaskConfig
from solo.config.evaluators import IntegrationRateConfig, SamplesConfig
from solo.model.parameters import Parameters

# The name of the weights that are trained, among averages of them.
TRAINED = "trained"


# The kind of an evaluator's lines and its section, by the key of the config that holds it.
_SECTIONS: Mapping[str, tuple[str, type[Section]]] = {
    "tasks": ("evaluation", TaskConfig),
    "losses": ("held_out", HeldOutConfig),
    "samples": ("samples", SamplesConfig),
    "integration_rate": ("integration_rate", IntegrationRateConfig),
}


def without_replaced(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the lines of `metrics.jsonl` without those of evaluators that a resumed run replaced under their names.

    What an evaluator measured before, such as another source, is not comparable with what it measures now.
    """
    lines = list(lines)
    replaced: dict[tuple[str, str], int] = {}  # (kind, name) -> the number of the first line that counts
    for number, line in enumerate(lines):
        if line["kind"] == "resumed" and isinstance(line.get("changes"), Mapping):
            replaced.update((evaluator, number) for evaluator in _changed(line["changes"]))
    return [
        line
        for number, line in enumerate(lines)
        if not isinstance(line.get("task"), str) or number >= replaced.get((line["kind"], line["task"]), 0)
    ]


def _changed(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields (kind, name) of the evaluators that keys such as `evaluation.losses.text.source` belong to."""
    for key in keys:
        root, _, rest = key.partition(".")
        holder, _, rest = rest.partition(".")
        name, _, field = rest.rpartition(".")
        if root == "evaluation" and holder in _SECTIONS:
            kind, section = _SECTIONS[holder]
            if field in keys_deciding(section, "evaluation"):
                yield kind, name


class EvaluationStopped(Exception):  # noqa: N818 - not a fault
    """An evaluation ended early because the run stops. What it had not measured is missing in `metrics.jsonl`."""


class Evaluators(Protocol):
    """Measures the weights of a run while it trains, where they lie. All processes call the same methods in order."""

    def due(self, step: int, last: bool) -> bool:
        """Returns whether anything is measured after a step; `last` says that it is the last one of the run."""
        ...

    def run(
        self, weights: Mapping[str, Parameters], step: int, last: bool, stop: Callable[[], bool]
    ) -> Iterable[Mapping[str, Any]]:
        """Measures what is due after a step and not in `metrics.jsonl` yet.

        Args:
            weights: sharded parameters, by the name of the weights: `TRAINED`, and every average of them.
            step: step of the run.
            last: whether it is the last one of the run.
            stop: says whether the run stops; called after every batch, equally often in all processes.

        Returns:
            Lines of `metrics.jsonl`, with `kind` and `step`; equal in all processes, apart from `timing`.

        Raises:
            EvaluationStopped: `stop` returned True.
        """
        ...

    def pictures(self, line: Mapping[str, Any]) -> Sequence[bytes | None]:
        """Returns a PNG file for each example of a line of sample answers, None for those without an image."""
        ...


class NoEvaluators:
    """Measures nothing."""

    def due(self, step: int, last: bool) -> bool:
        """Never."""
        return False

    def run(
        self, weights: Mapping[str, Parameters], step: int, last: bool, stop: Callable[[], bool]
    ) -> Iterable[Mapping[str, Any]]:
        """Nothing."""
        return ()

    def pictures(self, line: Mapping[str, Any]) -> Sequence[bytes | None]:
        """None."""
        return ()
