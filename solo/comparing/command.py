"""`solo compare RUN RUN ...`: several runs on one page. Help imports nothing heavy."""

from __future__ import annotations

import argparse
import sys

HELP = "show several runs on one page: curves, config differences, figures"
DESCRIPTION = (
    "Writes one self-contained HTML page: training loss, held-out losses and losses by source of all runs, over steps,"
    " tokens, FLOPs or time; the config keys in which they differ; and their latest figures. Runs may be training."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo compare`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("--out", default="compare.html", metavar="FILE", help="output file; default: compare.html")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page. Raises ConfigError if a folder is not that of a run, or none has trained a step."""
    from pathlib import Path

    from solo.comparing.page import write_page
    from solo.comparing.reading import read_runs

    runs, notes = read_runs(arguments.runs)
    write_page(Path(arguments.out), runs)
    for note in notes:
        print(f"solo: {note}", file=sys.stderr)
    print(f"page: {arguments.out}")
    return 0
