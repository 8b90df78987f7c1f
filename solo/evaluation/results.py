"""Results as lines of `metrics.jsonl`, and as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from solo.evaluation.losses import HeldOutLoss
from solo.evaluation.tasks import TaskResult

UNITS = {"exact_match": "right", "character_error_rate": "characters wrong"}


def results_lines(results: Sequence[TaskResult], step: int) -> list[dict[str, Any]]:
    """Returns a line of `metrics.jsonl` for each task, as of a step. Scores are in percent, the gain in points."""
    return [
        {
            "kind": "evaluation",
            "step": step,
            "task": result.task,
            "metric": result.metric,
            "score": result.score,
            "score_blank": result.score_blank,
            "gain": result.gain,
            "examples": result.count,
            "timing": {"seconds": result.seconds},
        }
        for result in results
    ]


def losses_lines(losses: Sequence[HeldOutLoss], step: int) -> list[dict[str, Any]]:
    """Returns a line of `metrics.jsonl` for each held-out loss, as of a step."""
    return [{"kind": "held_out", "step": step, "task": found.name, **found._asdict()} for found in losses]


def print_results(results: Sequence[TaskResult], console: Console) -> None:
    """Prints a table of all tasks, or nothing if there are none."""
    if not results:
        return
    table = Table("task", box=None, header_style="bold", pad_edge=False)
    for title in ("examples", "score", "images blanked", "gain", ""):
        table.add_column(title, justify="right")
    for result in results:
        table.add_row(
            result.task,
            f"{result.count:,}",
            percent(result.score),
            percent(result.score_blank),
            points(result.gain),
            UNITS[result.metric],
        )
    console.print(table)


def percent(value: float | None) -> str:
    """Formats a percentage to one decimal; empty for None."""
    return "" if value is None else f"{value:.1f}%"


def points(value: float | None) -> str:
    """Formats a difference of percentages with its sign; empty for None."""
    return "" if value is None else f"{value:+.1f}"
