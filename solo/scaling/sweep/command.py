"""The `solo sweep` command: its options and their actions. Slow imports are deferred until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from solo.outputs import Output, add_force, output, refuse_override

HELP = "plan and run a sweep of sizes and lengths"
DESCRIPTION = (
    "Prints the runs of a sweep's file: parameters, tokens, FLOPs, memory, time, cost. --yes trains those that have no"
    " result yet, --slurm writes them as a job array; `solo fit <folder>` fits the results. Exit status: 0 done, 1 a"
    " run failed or diverged, 2 invalid file or use, 42 stopped and resumable."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `solo sweep`."""
    add = parser.add_argument
    add(
        "spec",
        metavar="SPEC",
        help="a YAML file, such as configs/sweeps/laptop.yaml; with --run or --rates also the sweep's folder",
    )
    add("--yes", action="store_true", help="train the missing runs on this machine")
    add("--jobs", type=_positive, metavar="N", help="number of concurrent runs; default: as in the file")
    add("--retry", action="store_true", help="with --yes, --slurm or --configs: also start failed and diverged runs")
    add("--slurm", metavar="FILE", help="write a SLURM job array of the missing runs")
    add(
        "--configs",
        metavar="FOLDER",
        help="write the config of every run that can start, for `solo train` or `solo launch`; the next"
        " `solo sweep` collects the results",
    )
    add("--at-once", type=_positive, default=8, metavar="N", help="with --slurm: number of concurrent tasks; default 8")
    add("--run", nargs="+", metavar="ID", help="train these runs of the plan in this process, one after the other")
    add("--list", action="store_true", help="print only the ids of the missing runs, one task per line")
    add("--json", metavar="FILE", help="write the table as JSON")
    add("--rates", metavar="FILE", help="plot the best learning rate over widths, from the results")
    add("--loss", default="text", metavar="NAME", help="with --rates: one of evaluation.losses, default text")
    add("--coord-check", metavar="FILE", help="check whether activations keep their scale over widths, and plot it")
    add(
        "--on",
        nargs="+",
        metavar="MACHINE",
        help="cost the sweep on these machines from compiled steps, as `solo plan --on` does; names the cheapest",
    )
    add("--sizes", type=_positive, default=2, metavar="N", help="with --on: sizes to compile per design; default 2")
    add("--by", metavar="AXIS", help="with --rates or --coord-check: one result for each value of an axis")
    add_force(parser)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Runs `solo sweep` with parsed options. Returns the exit status."""
    from solo.scaling.errors import os_errors_explained
    from solo.scaling.progress import Progress

    with Progress(1, lines=False) as progress:
        progress.note("importing JAX")
        from solo.scaling.sweep.folder import SweepFolder
        from solo.scaling.sweep.spec import load_spec

    with os_errors_explained():
        if arguments.run or arguments.rates:
            given = Path(arguments.spec)
            folder = SweepFolder(given if given.is_dir() else load_spec(given).path)
            return _run_points(arguments, folder) if arguments.run else _rates(arguments, folder)
        return _plan_or_check(arguments, load_spec(arguments.spec))


def _plan_or_check(arguments: argparse.Namespace, spec: Any) -> int:
    import jax

    from solo.scaling.sweep.folder import SweepFolder

    # Planning needs no accelerator, and holding one would keep the runs from using it.
    jax.config.update("jax_platforms", "cpu")
    if arguments.coord_check:
        return _coordinates(arguments, spec)
    if arguments.on:
        if arguments.yes or arguments.slurm or arguments.configs or arguments.list:
            raise ValueError("--on only costs the sweep; leave out --yes, --slurm, --configs and --list")
        return _cost_on(arguments, spec)
    return _plan(arguments, spec, SweepFolder(spec.path))


def _plan(arguments: argparse.Namespace, spec: Any, folder: Any) -> int:
    from rich.console import Console

    from solo.scaling.progress import Progress
    from solo.scaling.sweep.costs import check_limits, costs, finished
    from solo.scaling.sweep.elsewhere import collect, groups
    from solo.scaling.sweep.folder import BAD
    from solo.scaling.sweep.points import expand
    from solo.scaling.sweep.show import as_json, print_sweep

    console = Console(highlight=False, soft_wrap=True)
    table, array = output(arguments, "--json"), output(arguments, "--slurm")
    if arguments.configs:
        refuse_override("--configs", arguments.configs)
    sizes = len(spec.ladder.width) if spec.ladder else 1
    with Progress(len(list(spec.combinations())) * sizes, lines=False) as progress:
        progress.note(f"counting tokens, parameters and FLOPs of {spec.name}")
        points = expand(spec, sized=progress.advance)
    starts = arguments.yes or arguments.slurm or arguments.configs
    if starts and spec.row_statistics is not None:
        raise ValueError("this sweep is planned without data (row_statistics): it can be costed, but not started")
    if starts and arguments.retry:
        for point in points:
            if folder.status(point.id) in BAD:
                folder.forget(point.id)
    if folder.plan_file.exists():
        for point in collect(folder, points, lambda line: print(line, file=sys.stderr)):
            print(f"collected: {point.id}, trained elsewhere", file=sys.stderr)
    lacking = [point for point in points if folder.result(point.id) is None]
    if arguments.list:
        for group in groups(lacking):
            print(" ".join(point.id for point in group))
        return 0
    measured = finished(points, folder)
    missing, everything = costs(spec, lacking, measured), costs(spec, points, measured)
    print_sweep(spec, points, folder, everything, missing, console)
    if table:
        table.write_json(as_json(points, folder, everything))
    check_limits(spec, lacking, missing)
    if not starts:
        console.print("nothing was started; --yes starts it" if lacking else "nothing is missing")
        return 0
    folder.write_plan(spec, points)
    folder.write_results()
    if arguments.slurm or arguments.configs:
        return _hand_out(arguments, spec, folder, lacking, array)
    return _train(arguments, spec, folder, points, console)


def _cost_on(arguments: argparse.Namespace, spec: Any) -> int:
    """Returns exit status 1 if the sweep fits none of the machines."""
    from rich.console import Console

    from solo.machines import parse_machine
    from solo.scaling.sweep.compiled import machine_cost
    from solo.scaling.sweep.points import expand
    from solo.scaling.sweep.show import print_machines

    machines = [parse_machine(name) for name in arguments.on]
    table = output(arguments, "--json")
    points = expand(spec)
    found = [
        machine_cost(spec, points, each, arguments.sizes, lambda line: print(line, file=sys.stderr, flush=True))
        for each in machines
    ]
    print_machines(points, found, Console(highlight=False, soft_wrap=True))
    if table:
        table.write_json({"machines": [each.as_dict() for each in found]})
    return 0 if any(each.hours is not None for each in found) else 1


def _hand_out(arguments: argparse.Namespace, spec: Any, folder: Any, lacking: Any, array: Output | None) -> int:
    """Writes a job array or configs, for runs that are trained elsewhere."""
    from solo.scaling.sweep.elsewhere import write_array, write_configs

    if array:
        tasks = write_array(array, spec.name, folder.path, lacking, arguments.at_once)
        print(f"{tasks} tasks; submit them with: sbatch {array.path}")
        return 0
    written = write_configs(folder, lacking, Path(arguments.configs), arguments.force)
    for path in written:
        print(f"solo launch TARGET {path} --on {spec.machine.name}")
    if waiting := len(lacking) - len(written):
        print(f"{waiting} more are running, or wait for the result of their stable run")
    return 0


def _train(arguments: argparse.Namespace, spec: Any, folder: Any, points: Any, console: Any) -> int:
    from solo.scaling.sweep.folder import DONE
    from solo.scaling.sweep.local import LocalRunner

    jobs = arguments.jobs or spec.jobs
    runner = LocalRunner(folder, points, jobs, lambda line: console.print(line, markup=False))
    completed = runner.run()
    folder.write_results()
    if not completed:
        console.print("stopped; the same command resumes")
        return 42
    bad = [point.id for point in points if folder.status(point.id) not in DONE]
    if bad:
        console.print(f"{len(bad)} of {len(points)} runs have no result to fit: {', '.join(bad)}")
    console.print(f"results: {folder.results_file}; fit them with: solo fit {folder.path}")
    return 1 if bad else 0


def _run_points(arguments: argparse.Namespace, folder: Any) -> int:
    from solo.config import ConfigError, nearest
    from solo.scaling.sweep.execute import execute
    from solo.scaling.sweep.folder import BAD
    from solo.training.stopping import Interrupted, Stop

    points = {point.id: point for point in folder.read_plan()}
    if unknown := [id for id in arguments.run if id not in points]:
        raise ConfigError(
            f"{folder.plan_file} has no run {unknown[0]!r}{nearest(unknown[0], list(points))}; --yes, --slurm and"
            " --configs plan the sweep's file anew"
        )
    ids: list[str] = []
    for point in map(points.__getitem__, arguments.run):
        # The stable run of a branch is trained first if it has not reached the branch point.
        if point.stable_run and not folder.has_checkpoint(point.stable_run, point.branch_step):
            ids.append(point.stable_run)
        ids.append(point.id)
    stop, found = Stop(), {}
    for id in dict.fromkeys(ids):
        try:
            with stop.listening():
                found[id] = execute(folder, points[id], stop)
        except Interrupted:
            print(f"{id}: stopped and saved")
            return 42
        print(f"{id}: {found[id]}", flush=True)
    return 1 if any(status in BAD for status in found.values()) else 0


def _rates(arguments: argparse.Namespace, folder: Any) -> int:
    from solo.scaling.sweep.plots import check_suffix, plot_rates
    from solo.scaling.sweep.rates import curves

    check_suffix(Path(arguments.rates))
    plot = output(arguments, "--rates")
    assert plot is not None
    found = curves(folder, arguments.loss, arguments.by)
    for curve in found:
        best = "at the edge: try more rates" if curve.best is None else f"{curve.best:.3g}, loss {curve.best_loss:.4f}"
        print(f"{curve.name}, {curve.steps:,} steps: best learning rate {best}")
    plot_rates(found, arguments.loss, plot)
    print(f"plotted: {plot.path}")
    return 0


def _coordinates(arguments: argparse.Namespace, spec: Any) -> int:
    """Returns exit status 1 if activations do not keep their scale."""
    from solo.scaling.sweep.coordinates import FLAT, check_spec, is_flat, spreads
    from solo.scaling.sweep.plots import check_suffix, plot_coordinates

    check_suffix(Path(arguments.coord_check))
    plot = output(arguments, "--coord-check")
    assert plot is not None
    found = check_spec(spec, lambda line: print(line, flush=True), arguments.by)
    for name, sizes in found.items():
        print(f"{name}: largest scale over smallest, minus 1, after {len(sizes[0]) - 1} steps")
        for quantity, spread in spreads([size[-1] for size in sizes]).items():
            print(f"  {quantity}: {spread:.1%}")
    plot_coordinates(found, plot)
    judged = list(found) if arguments.by else list(found)[:1]  # without --by, the second is for comparison
    flat = {name: is_flat(found[name]) for name in judged}
    for name, keeps in flat.items():
        print(f"{name}: activations {'keep' if keeps else 'do not keep'} their scale within {FLAT:.0%}")
    print(f"plotted: {plot.path}")
    return 0 if all(flat.values()) else 1
