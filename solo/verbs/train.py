"""`solo train`: prepare, train every stage and evaluate, or resume an earlier attempt."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from solo.statuses import INTERRUPTED
from solo.verbs.overrides import add_config

HELP = "train a config's stages, evaluate, and write the report"
DESCRIPTION = (
    "Trains every stage in runs/NAME, saving checkpoints; the same command resumes after any kind of stop."
    " Exit status: 0 done, 1 failed, 2 invalid config or usage, 42 saved after SIGTERM,"
    " 200 a fault from outside, such as a killed data worker: the same command resumes."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo train`."""
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prepare, train every stage and evaluate, or resume an earlier attempt."""
    began = time.time()
    from rich.console import Console

    from solo.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from solo.training.distributed import MissingHostsError, join, leave, wait_for_dead_process

    try:
        hosts = join()
    except MissingHostsError as error:
        print(f"solo: {error}", file=sys.stderr)
        return INTERRUPTED
    from jax.errors import JaxRuntimeError

    from solo.evaluation.results import print_results
    from solo.pipeline import train as train_run
    from solo.training.observer import Observer, ProgressBar
    from solo.training.trainer import Interrupted

    console = Console(quiet=hosts is not None and not hosts.is_first)
    observer = Observer() if console.quiet else ProgressBar(console)
    if hosts is None:  # among others, jax listens: see `stop_agreed`
        observer.listen()
    try:
        done = train_run(config, observer, began)
    except Interrupted:
        print(f"solo: stopped by SIGTERM, saved in {config.run_folder}; the same command resumes", file=sys.stderr)
        leave()
        return INTERRUPTED
    except JaxRuntimeError as error:
        wait_for_dead_process(error)
        raise
    finally:
        observer.finish()
    leave()
    print_results(done.results, console)
    _say_where(done.run, done.notes, console)
    return 0


def _say_where(run: Any, notes: list[str], console: Any) -> None:
    for title, path in (
        ("report", run.path / run.report_file.name),
        ("metrics", run.path / run.metrics_file.name),
        ("TensorBoard", run.tensorboard),  # only on this machine, if the run is in a bucket
        ("checkpoints", run.checkpoints),
        ("config", run.path / run.config_file.name),
    ):
        console.print(f"{title:12}{path}", soft_wrap=True, highlight=False, markup=False)
    for line in notes:
        console.print(f"note        {line}", soft_wrap=True, highlight=False, markup=False)
