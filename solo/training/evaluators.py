"""The interface between the training loop and evaluation: when evaluators are due, and their lines of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from solo.config.base import Section
from solo.config.compare import keys_deciding
from solo.config.evaluation import HeldOutConfig, TaskConfig
from solo.config.evaluators import IntegrationRateConfig, SamplesConfig
from solo.model.parameters import Parameters

# The name of the trained weights, as opposed to averages of them.
TRAINED = "trained"


# Key of `evaluation` in the config -> kind of the evaluator's lines, and class of its section.
_SECTIONS: Mapping[str, tuple[str, type[Section]]] = {
    "tasks": ("evaluation", TaskConfig),
    "losses": ("held_out", HeldOutConfig),
    "samples": ("samples", SamplesConfig),
    "integration_rate": ("integration_rate", IntegrationRateConfig),
}


def without_replaced(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the lines of `metrics.jsonl` without results of evaluators that a resumed run replaced.

    If an evaluator's settings change, such as its source, its earlier results are not comparable with later ones.
    """
    lines = list(lines)
    replaced: dict[tuple[str, str], int] = {}  # (kind, name) -> the number of the first valid line
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
    """An evaluation ended early because the run stops. Its remaining results are missing in `metrics.jsonl`."""


class Evaluators(Protocol):
    """Evaluates the sharded weights of a run during training. All processes call the same methods in order."""

    def due(self, step: int, last: bool) -> bool:
        """Returns whether any evaluator runs after a step. `last`: whether it is the last step of the run."""
        ...

    def run(
        self, weights: Mapping[str, Parameters], step: int, last: bool, stop: Callable[[], bool]
    ) -> Iterable[Mapping[str, Any]]:
        """Runs the evaluators that are due after a step and have no result in `metrics.jsonl` yet.

        Args:
            weights: sharded parameters, by the name of the weights: `TRAINED`, and every average of them.
            step: step of the run.
            last: whether it is the last step of the run.
            stop: returns whether the run stops; called after every batch, equally often in all processes.

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
