"""`solo train`: prepare, train every stage and evaluate, or resume an earlier attempt."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.statuses import INTERRUPTED
from solo.verbs.overrides import add_config

if TYPE_CHECKING:
    from solo.config import Config
    from solo.training.hosts import Hosts
    from solo.training.observer import Observer
    from solo.training.stopping import Stop

HELP = "train a config's stages, evaluate, and write the report"
DESCRIPTION = (
    "Trains every stage in runs/NAME, saving checkpoints; the same command resumes after any kind of stop."
    " Exit status: 0 done, 1 failed, 2 invalid config or usage, 42 saved after SIGTERM,"
    " 200 an external fault, such as a killed data worker: the same command resumes."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo train`."""
    add_config(parser)
    parser.add_argument(
        "--branch-from",
        metavar="RUN[@STEP]",
        help="begin a new run with the weights and the optimizer state of another run's checkpoint (newest, @STEP or"
        " @best); the same command resumes it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare, train every stage and evaluate, or resume an earlier attempt."""
    began = time.time()
    from solo.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.branch_from is not None:
        from solo.training.lineage import branch_config

        config = config.model_copy(update={"branch": branch_config(arguments.branch_from)})
    from solo.training.distributed import join
    from solo.training.roll_call import MissingHostsError
    from solo.training.stopping import Interrupted, Stop

    stop = Stop()
    shows: list[Observer] = []
    try:
        with stop.listening():  # until several processes have joined: then JAX listens
            hosts = join(found=lambda hosts: shows.append(_observer(config, hosts)))
            return _train(arguments, config, hosts, shows[0] if shows else _observer(config, None), stop, began)
    except MissingHostsError as error:
        print(f"solo: {error}", file=sys.stderr)
        return INTERRUPTED
    except Interrupted:
        print(
            f"solo: stopped by SIGTERM; the same command resumes from the newest checkpoint in {config.run_folder}",
            file=sys.stderr,
        )
        return INTERRUPTED


def _train(
    arguments: argparse.Namespace, config: Config, hosts: Hosts | None, observer: Observer, stop: Stop, began: float
) -> int:
    """Trains among the hosts. Raises Interrupted after SIGTERM, once all processes know of it and have saved."""
    from jax.errors import JaxRuntimeError

    from solo.evaluation.results import print_results
    from solo.pipeline import train as train_run
    from solo.training.checkpoint import CheckpointError
    from solo.training.distributed import leave, wait_for_dead_process
    from solo.training.facts import elsewhere
    from solo.training.stopping import Interrupted

    observer.listen_for_profiles()
    if text := elsewhere(Path(arguments.config), config.run_folder):
        observer.warn(text)
    try:
        done = train_run(config, observer, began, stop)
    except Interrupted:
        leave()
        raise
    except (JaxRuntimeError, ValueError, CheckpointError) as error:
        wait_for_dead_process(error)
        raise
    finally:
        observer.finish()
    leave()
    from rich.console import Console

    console = Console(quiet=hosts is not None and not hosts.is_first)
    print_results(done.results, console)
    _say_where(done.run, [note for note in done.notes if note not in observer.warned], console)
    return 0


def _observer(config: Config, hosts: Hosts | None) -> Observer:
    """Returns what shows the run: in the first of its processes, lines or a bar; in the others, nothing."""
    from solo.training.observer import Silent, observer_for

    if hosts is not None and not hosts.is_first:
        return Silent()
    observer = observer_for(config.watch.log_every_seconds)
    if hosts is not None:
        observer.note(f"joining: {len(hosts.names)} processes ({hosts.source})")
    return observer


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
