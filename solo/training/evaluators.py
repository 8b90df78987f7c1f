"""What the training loop knows of evaluation: when it is due, and that it yields lines for `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from solo.model.parameters import Parameters

# The name of the weights that are trained, among averages of them.
TRAINED = "trained"


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
