"""Scores as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from solo.evaluation.scoring.outcome import LANGUAGE_MODEL, Evaluated, MeasuredText
from solo.evaluation.scoring.page import MEASURES, WAYS, bounds, compared_with, difference_words, points
from solo.evaluation.scoring.scores import Score


def print_scores(found: Sequence[Evaluated], console: Console) -> None:
    """Prints the scores with their 95% intervals, the contribution of images, and comparisons."""
    table = Table("task", box=None, header_style="bold", pad_edge=False)
    for title in ("score", "95% interval", "items", "cut", "metric", "convention"):
        table.add_column(title, justify="right" if title not in ("metric", "convention") else "left", no_wrap=True)
    for each in found:
        for name, score in each.scores.items():
            table.add_row(*_row(each, name, score))
            if name == "shown":
                for group, value in list(score.summary.items())[1:]:
                    table.add_row(f"  {group}", points(value), "", "", "", "", "", style="dim")
    if found:
        _print(table, console)
    _print_differences(found, console)


def print_texts(found: Sequence[MeasuredText], console: Console) -> None:
    """Prints the scores on texts, and the differences from the language model that the model started from."""
    if not found:
        return
    table = Table("text", box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for title in ("value", "95% interval", "language model", "difference", "95% interval", "p"):
        table.add_column(title, justify="right")
    for text in found:
        mine, before = text.scores["shown"], text.scores.get(LANGUAGE_MODEL)
        for place, (name, value) in enumerate(mine.metrics.items()):
            row = [text.file.name if place == 0 else "", name, points(value.value, ".4g")]
            row.append(bounds(value.low, value.high, ".4g"))
            if before is not None:
                change = text.differences[name]
                row += [points(before.metrics[name].value, ".4g"), points(change.value, "+.3g")]
                row += [bounds(change.low, change.high, "+.3g"), points(change.p, ".3f")]
            table.add_row(*row)
    _print(table, console)


def _print(table: Table, console: Console) -> None:
    """Prints a table, without cutting or wrapping it in a file or pipe."""
    (console if console.is_terminal else Console(file=console.file, width=240)).print(table)


def _row(each: Evaluated, name: str, score: Score) -> list[str]:
    value = score.value
    return [
        each.task.benchmark.name if name == "shown" else f"  {WAYS[name]}",
        points(value.value),
        bounds(value.low, value.high),
        f"{score.items:,}",
        f"{score.count('cut'):,}" if score.count("cut") else "",
        score.metric,
        score.settings.convention,
    ]


def _print_differences(found: Sequence[Evaluated], console: Console) -> None:
    table = Table("task", "difference", box=None, header_style="bold", pad_edge=False)
    for title in ("points", "95% interval", "p"):
        table.add_column(title, justify="right")
    for each in found:
        name = each.task.benchmark.name
        for measure, value in each.measures.items():
            table.add_row(name, MEASURES[measure], *difference_words(value).values())
        for other in each.comparisons:
            counts = f"{other.items:,} items; {other.fixed:,} better, {other.broken:,} worse"
            words = f"against {compared_with(other)} ({counts})"
            table.add_row(name, words, *difference_words(other.difference).values())
    if table.row_count:
        console.print()
        _print(table, console)
