"""`solo evaluate`: evaluate a run again and rewrite its report."""

from __future__ import annotations

import argparse

HELP = "evaluate a run again and rewrite its report"
DESCRIPTION = "Runs the evaluation of the run's config with the newest checkpoint."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo evaluate`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate a run again and rewrite its report."""
    from rich.console import Console

    from solo.evaluation.results import print_results
    from solo.evaluation.run import evaluate_folder
    from solo.training.observer import ProgressBar

    console = Console()
    observer = ProgressBar(console)
    try:
        results = evaluate_folder(arguments.run, observer)
    finally:
        observer.finish()
    print_results(results, console)
    console.print(f"report: {arguments.run}/report.html", soft_wrap=True, markup=False)
    return 0
