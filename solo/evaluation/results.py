"""Results as lines of `metrics.jsonl`, and as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from solo.config import EvaluationConfig
from solo.evaluation.tasks import Records, TaskResult, questions
from solo.training.evaluators import TRAINED

UNITS = {"exact_match": "right", "character_error_rate": "characters wrong"}


def task_fields(result: TaskResult) -> dict[str, Any]:
    """Returns the fields of a task's line in `metrics.jsonl`. Scores are in percent, the gain in points.

    `answers` contains the answers to the first examples, for the report.
    """
    return {
        "metric": result.metric,
        "score": result.score,
        "score_blank": result.score_blank,
        "gain": result.gain,
        "examples": result.count,
        "answers": [
            [example.answer] if example.blanked is None else [example.answer, example.blanked]
            for example in result.examples
        ],
    }


def newest(lines: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """Returns the newest line of every evaluator of a kind, by its name and the weights."""
    found: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for line in lines:
        if line["kind"] == kind and "task" in line:
            key = (line["task"], line.get("weights", TRAINED))
            if key not in found or found[key]["step"] <= line["step"]:
                found[key] = line
    return list(found.values())


def task_results(
    lines: Iterable[Mapping[str, Any]], config: EvaluationConfig, sources: Mapping[str, Records]
) -> list[TaskResult]:
    """Returns the newest result of every task of the config, with the examples whose answers are in its line.

    Raises:
        ConfigError: the source of a task is missing, or has changed.
    """
    results = []
    for line in newest(lines, "evaluation"):
        task = config.tasks.get(line["task"])
        if task is None:
            continue
        answers = line.get("answers", [])[: config.report_examples]
        examples = [
            replace(question, answer=said[0], blanked=said[1] if len(said) > 1 else None)
            for question, said in zip(questions(line["task"], task, sources, len(answers)), answers, strict=False)
        ]
        results.append(
            TaskResult(
                line["task"],
                line["metric"],
                line["score"],
                line["score_blank"],
                line["examples"],
                line["timing"]["seconds"],
                tuple(examples),
                line.get("weights", TRAINED),
            )
        )
    return results


def print_results(results: Sequence[TaskResult], console: Console) -> None:
    """Prints a table of all tasks, or nothing if there are none."""
    if not results:
        return
    table = Table("task", box=None, header_style="bold", pad_edge=False)
    for title in ("examples", "score", "images blanked", "gain", ""):
        table.add_column(title, justify="right")
    for result in results:
        table.add_row(
            titled(result.task, result.weights),
            f"{result.count:,}",
            percent(result.score),
            percent(result.score_blank),
            points(result.gain),
            UNITS[result.metric],
        )
    console.print(table)


def titled(name: str, weights: str) -> str:
    """Returns the name of an evaluator, with the weights if they are an average."""
    return name if weights == TRAINED else f"{name} ({weights})"


def percent(value: float | None) -> str:
    """Formats a percentage to one decimal; empty for None."""
    return "" if value is None else f"{value:.1f}%"


def points(value: float | None) -> str:
    """Formats a difference of percentages with its sign; empty for None."""
    return "" if value is None else f"{value:+.1f}"
