"""`solo sweep`: its options, and what each does. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from solo.files import write_whole

DESCRIPTION = (
    "Prints what a sweep's file comes to: runs, parameters, tokens, FLOPs, memory, time, cost. --yes starts what has no"
    " result yet, --slurm writes it as a job array; `solo fit <folder>` fits the results. Exit status: 0 done, 1 a run"
    " failed or diverged, 2 wrong file or use, 42 stopped and resumable."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `solo sweep`."""
    add = parser.add_argument
    add("spec", metavar="SPEC", help="a YAML file, such as configs/sweeps/laptop.yaml")
    add("--yes", action="store_true", help="start what is missing, on this machine")
    add("--jobs", type=int, metavar="N", help="runs at a time; default as the file says")
    add("--retry", action="store_true", help="with --yes or --slurm: failed and diverged runs too")
    add("--slurm", metavar="FILE", help="write a job array for what is missing")
    add(
        "--configs",
        metavar="FOLDER",
        help="write the config of every run that can start, for `solo train` or `python -m launch`; the next"
        " `solo sweep` takes up the results",
    )
    add("--at-once", type=int, default=8, metavar="N", help="with --slurm: tasks at a time, default 8")
    add("--run", nargs="+", metavar="ID", help="do these runs of the planned sweep, one after another, in this process")
    add(
        "--list",
        action="store_true",
        help="only the ids of the runs that are missing, a trunk with its branches a line",
    )
    add("--json", metavar="FILE", help="write the table as JSON")
    add("--rates", metavar="FILE", help="plot the best learning rate over widths, from the results")
    add("--loss", default="text", metavar="NAME", help="with --rates: of evaluation.losses, default text")
    add("--coord-check", metavar="FILE", help="plot the scale of activations over the ladder's widths, and judge it")


def run(arguments: argparse.Namespace) -> int:
    """Run `solo sweep` with parsed options. Returns the exit status."""
    from solo.scaling.sweep.folder import SweepFolder
    from solo.scaling.sweep.spec import load_spec

    spec = load_spec(arguments.spec)
    folder = SweepFolder(spec.path)
    if arguments.run:
        return _run_points(arguments, spec, folder)
    if arguments.rates:
        return _rates(arguments, folder)
    import jax

    # Planning needs no accelerator, and one that it held would be missing to the runs.
    jax.config.update("jax_platforms", "cpu")
    if arguments.coord_check:
        return _coordinates(spec, Path(arguments.coord_check))
    return _plan(arguments, spec, folder)


def _plan(arguments: argparse.Namespace, spec: Any, folder: Any) -> int:
    from rich.console import Console

    from solo.scaling.sweep.costs import check_limits, costs
    from solo.scaling.sweep.folder import BAD
    from solo.scaling.sweep.points import expand
    from solo.scaling.sweep.show import print_sweep

    console = Console(highlight=False, soft_wrap=True)
    points = expand(spec)
    starts = arguments.yes or arguments.slurm or arguments.configs
    if starts and spec.traffic is not None:
        raise ValueError("this sweep is planned without data (traffic): it can be costed, not started")
    if starts and arguments.retry:
        for point in points:
            if folder.status(point.id) in BAD:
                folder.forget(point.id)
    _collect(folder, points)
    lacking = [point for point in points if folder.result(point.id) is None]
    missing = costs(spec, lacking, folder)
    if arguments.list:
        from solo.scaling.sweep.slurm import groups

        for group in groups(lacking):
            print(" ".join(point.id for point in group))
        return 0
    everything = costs(spec, points, folder)
    print_sweep(spec, points, folder, everything, missing, console)
    if arguments.json:
        import json

        write_whole(Path(arguments.json), json.dumps(_as_json(points, folder, everything), indent=1) + "\n")
    check_limits(spec, lacking, missing)
    if not starts:
        console.print("nothing was started; --yes starts it" if lacking else "nothing is missing")
        return 0
    folder.write_plan(spec, points)
    folder.write_results()
    if arguments.slurm or arguments.configs:
        return _hand_out(arguments, spec, folder, points, lacking)
    return _start(arguments, spec, folder, points, console)


def _collect(folder: Any, points: Any) -> None:
    """Take up what was trained elsewhere since the sweep was planned."""
    from solo.scaling.sweep.elsewhere import collect

    if folder.plan_file.exists():
        for point in collect(folder, points):
            print(f"taken up: {point.id}, trained elsewhere", file=sys.stderr)


def _hand_out(arguments: argparse.Namespace, spec: Any, folder: Any, points: Any, lacking: Any) -> int:
    """Runs for others to do: a job array, or configs."""
    if arguments.slurm:
        from solo.scaling.sweep.slurm import write_array

        path = Path(arguments.slurm)
        tasks = write_array(path, Path(arguments.spec), spec.name, folder.path, lacking, arguments.at_once)
        print(f"{tasks} tasks; send them with: sbatch {path}")
        return 0
    from solo.scaling.sweep.elsewhere import write_configs

    written = write_configs(folder, points, lacking, Path(arguments.configs))
    for path in written:
        print(f"python -m launch TARGET {path} --on {spec.machine.name}")
    if waiting := len(lacking) - len(written):
        print(f"{waiting} more run already, or wait for their trunk: ask again once it has a result")
    return 0


def _start(arguments: argparse.Namespace, spec: Any, folder: Any, points: Any, console: Any) -> int:
    from solo.scaling.sweep.folder import DONE
    from solo.scaling.sweep.local import Dispatcher

    jobs = arguments.jobs or spec.jobs
    done = Dispatcher(Path(arguments.spec), folder, points, jobs, lambda line: console.print(line, markup=False)).run()
    folder.write_results()
    if not done:
        console.print("stopped; the same command goes on")
        return 42
    bad = [point.id for point in points if folder.status(point.id) not in DONE]
    if bad:
        console.print(f"{len(bad)} of {len(points)} runs have no result to fit: {', '.join(bad)}")
    console.print(f"results: {folder.results_file}; fit them with: solo fit {folder.path}")
    return 1 if bad else 0


def _run_points(arguments: argparse.Namespace, spec: Any, folder: Any) -> int:
    from solo.config import ConfigError, nearest
    from solo.scaling.sweep.execute import execute
    from solo.scaling.sweep.folder import BAD
    from solo.training.observer import Observer
    from solo.training.trainer import Interrupted

    points = {point.id: point for point in folder.read_plan(spec)}
    if unknown := [id for id in arguments.run if id not in points]:
        raise ConfigError(f"the sweep has no run {unknown[0]!r}{nearest(unknown[0], list(points))}")
    observer = Observer()
    observer.listen()
    found = {}
    for id in arguments.run:
        point = points[id]
        try:
            found[id] = execute(folder, point, points[point.trunk] if point.trunk else None, observer)
        except Interrupted:
            print(f"{id}: stopped and saved")
            return 42
        print(f"{id}: {found[id]}", flush=True)
    return 1 if any(status in BAD for status in found.values()) else 0


def _as_json(points: Any, folder: Any, found: Any) -> dict[str, Any]:
    from dataclasses import asdict

    rows = [
        {
            "id": point.id,
            **point.labels,
            "width": point.config.model.width,
            "layers": point.config.model.layers,
            "steps": point.steps,
            "trunk": point.trunk,
            "is_trunk": point.is_trunk,
            "branch_step": point.branch_step,
            "budget": point.budget,
            **asdict(point.estimate),
            "seconds": found.seconds[point.id],
            "usd": found.usd[point.id],
            "status": folder.status(point.id),
        }
        for point in points
    ]
    return {
        "runs": rows,
        "flops": found.flops,
        "hours": found.hours,
        "usd": found.total_usd,
        "time": found.speed.source,
    }


def _rates(arguments: argparse.Namespace, folder: Any) -> int:
    from solo.scaling.sweep.plots import check_suffix, plot_rates
    from solo.scaling.sweep.rates import curves

    path = Path(arguments.rates)
    check_suffix(path)
    found = curves(folder, arguments.loss)
    for curve in found:
        best = "at the edge: try more rates" if curve.best is None else f"{curve.best:.3g}, loss {curve.best_loss:.4f}"
        print(f"width {curve.width}: best learning rate {best}")
    plot_rates(found, arguments.loss, path)
    print(f"plotted: {path}")
    return 0


def _coordinates(spec: Any, path: Path) -> int:
    """Exit status 1 where the activations are not flat."""
    from solo.scaling.sweep.coordinates import FLAT, check_spec, is_flat, spreads
    from solo.scaling.sweep.plots import check_suffix, plot_coordinates

    check_suffix(path)
    found = check_spec(spec, lambda line: print(line, flush=True))
    for kind, sizes in found.items():
        print(f"{kind}: largest scale over smallest, less 1, after {len(sizes[0]) - 1} steps")
        for name, spread in spreads([size[-1] for size in sizes]).items():
            print(f"  {name}: {spread:.1%}")
    plot_coordinates(found, path)
    kind, sizes = next(iter(found.items()))
    flat = is_flat(sizes)
    print(f"{kind} is {'' if flat else 'not '}flat within {FLAT:.0%} behind every layer; plotted: {path}")
    return 0 if flat else 1
