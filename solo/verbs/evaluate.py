"""`solo evaluate`: evaluate a run again and rewrite its report."""

from __future__ import annotations

import argparse

HELP = "evaluate a checkpoint of a run, and write its report again"
DESCRIPTION = (
    "Runs all evaluators of the run's config with a checkpoint, by default the newest, adds their lines to"
    " metrics.jsonl, and writes report.html again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo evaluate`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint: RUN@STEP, RUN@best")
    parser.add_argument(
        "--weights", metavar="NAME", default="trained", help="the name of an average; default: the trained weights"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate a checkpoint of a run, and write its report again."""
    from rich.console import Console

    from solo.evaluation.results import print_results
    from solo.evaluation.run import evaluate_folder
    from solo.training.observer import ProgressBar
    from solo.training.reference import parse_reference

    console = Console()
    observer = ProgressBar(console)
    try:
        results = evaluate_folder(arguments.run, observer, arguments.weights)
    finally:
        observer.finish()
    print_results(results, console)
    console.print(f"report: {parse_reference(arguments.run).folder}/report.html", soft_wrap=True, markup=False)
    return 0
