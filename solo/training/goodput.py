"""`solo goodput RUN`: how a run spent its time. Help imports nothing heavy."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

HELP = "show how a run spent its time"
DESCRIPTION = (
    "Sums up goodput.jsonl over all attempts of a run, finished or not: start-up, compilation, steps, idle waits for"
    " data, checkpoints, evaluation, steps that a restart had to repeat, and the time between attempts. Goodput is the"
    " share of time in steps that count."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo goodput`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints the summary. Raises ConfigError if the folder is not a run, or holds no reading."""
    from solo.files import json_text
    from solo.training.ledger import goodput
    from solo.training.run_folder import RunFolder

    folder = RunFolder.existing(arguments.run)
    found = goodput(folder.goodput_file)
    if arguments.json:
        print(json_text(found.as_json(), indent=2))
    else:
        _show(found, folder.goodput_file)
    return 0


def _show(found: Any, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("part")
    for title in ("seconds", "share"):
        table.add_column(title, justify="right")
    for part, seconds in found.seconds.items():
        table.add_row(part, f"{seconds:,.1f}", f"{found.share_of(part):.1%}")
    table.add_section()
    table.add_row("all", f"{found.total:,.1f}", "")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.last))
    console.print(f"goodput {found.share_of('step'):.1%}: {found.steps:,} steps in {found.attempts} attempts")
    console.print(f"{found.state}; last reading {at}")
    if found.broken:
        console.print(f"{found.broken} damaged lines of {path} are left out")
