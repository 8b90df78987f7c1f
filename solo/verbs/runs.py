"""`solo runs [FOLDER]`: the runs of a folder, with their states and latest figures. Help imports nothing heavy."""

from __future__ import annotations

import argparse
import time
from typing import Any

HELP = "list the runs of a folder with their states and latest figures"
DESCRIPTION = (
    "Lists the runs of a folder or bucket (gs://, s3://): running, done, interrupted (saved after SIGTERM), failed,"
    " killed, or unreadable; their steps, loss, held-out loss, tokens per second, goodput, and the time since their"
    " last sign of life. Running runs come first; the others are sorted by their last sign of life."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo runs`."""
    parser.add_argument(
        "folder", nargs="?", default="runs", metavar="FOLDER", help="folder or bucket of runs; default: runs"
    )
    parser.add_argument("--json", action="store_true", help="print the runs as one JSON array")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table. Raises ConfigError if there is no such folder."""
    from solo.files import json_text
    from solo.training.overview import overviews

    found = overviews(arguments.folder)
    if arguments.json:
        print(json_text([run.as_json() for run in found], indent=2))
    elif not found:
        print(f"no runs in {arguments.folder}")
    else:
        _show(found)
    return 0


def _show(runs: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from solo.units import duration

    now = time.time()
    table = Table("run", "state", box=None, pad_edge=False, header_style="bold")
    for title in ("step", "loss", "held-out", "tokens/s", "goodput", "last sign of life"):
        table.add_column(title, justify="right")
    for run in runs:
        held_out = ", ".join(f"{name} {_number(loss, '.3f')}" for name, loss in sorted((run.held_out or {}).items()))
        table.add_row(
            _plain(run.name),
            _plain(f"{run.state}: {run.doing}" if run.doing else run.state),
            "" if run.step is None else f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else ""),
            _number(run.loss, ".4f") if run.step else "",
            _plain(held_out),
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            "" if run.goodput is None else f"{run.goodput:.1%}",
            "" if run.last is None else f"{duration(max(now - run.last, 0.0))} ago",
        )
    console = Console(highlight=False)
    Console(highlight=False, width=console.width if console.is_terminal else 240).print(table)


def _number(value: float | None, form: str) -> str:
    return "nan" if value is None else format(value, form)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "?" for letter in text))
