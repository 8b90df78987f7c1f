"""The table of a sweep's runs, on the terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from solo.evaluation.report import duration, short
from solo.scaling.report.terminal import print_whole
from solo.scaling.sweep.compiled import MachineCost
from solo.scaling.sweep.costs import Costs
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import Point
from solo.scaling.sweep.spec import SweepSpec

_OFF = 0.01  # relative difference between planned and counted FLOPs above which there is a note


def print_sweep(
    spec: SweepSpec, points: Sequence[Point], folder: SweepFolder, found: Costs, missing: Costs, console: Console
) -> None:
    """Prints the table that is shown before anything starts."""
    status = {point.id: folder.status(point.id) for point in points}
    print_whole(_table(spec, points, found, status), console)
    stable = sum(point.is_stable for point in points)
    console.print(
        f"{len(points) - stable} runs{f' and {stable} stable runs' if stable else ''}, {found.flops:.4g} FLOPs"
        f"{' (a branch costs only its decay)' if stable else ''}; {_time_and_money(found)}"
    )
    console.print(f"time: {found.speed.source}; memory is an estimate", markup=False)
    console.print("status: " + ", ".join(f"{count} {name}" for name, count in Counter(status.values()).items()))
    if 0 < len(missing.seconds) < len(points):
        console.print(f"missing: {len(missing.seconds)}, {missing.flops:.4g} FLOPs; {_time_and_money(missing)}")
    for point in points:
        _print_fault(point, folder, console)
    if strangers := folder.strangers(points):
        console.print(
            f"{len(strangers)} runs in {folder.path} do not belong to the current version of the sweep's file, and are"
            f" ignored: {', '.join(strangers[:5])}{', ...' if len(strangers) > 5 else ''}"
        )


def as_json(points: Sequence[Point], folder: SweepFolder, found: Costs) -> dict[str, Any]:
    """Returns the table as JSON values."""
    rows = [
        {
            "id": point.id,
            **point.labels,
            "width": point.config.model.width,
            "layers": point.config.model.layers,
            "steps": point.steps,
            "stable_run": point.stable_run,
            "is_stable": point.is_stable,
            "branch_step": point.branch_step,
            "budget": point.budget,
            **asdict(point.estimate),
            "seconds": found.seconds[point.id],
            "usd": found.usd[point.id],
            "status": folder.status(point.id),
        }
        for point in points
    ]
    totals = {"flops": found.flops, "hours": found.hours, "usd": found.total_usd, "time": found.speed.source}
    return {"runs": rows, **totals}


def print_machines(points: Sequence[Point], found: Sequence[MachineCost], console: Console) -> None:
    """Prints the compiled steps and the total cost on each machine, and names the cheapest."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("machine", "design", "width", "N active", "step", "MFU", "memory"):
        table.add_column(title, justify="left" if title in ("machine", "design") else "right")
    for each in found:
        for step in each.steps:
            limit = "" if step.limit is None else f" of {step.limit / 2**30:.2f}"
            table.add_row(
                each.machine.name,
                step.labels,
                str(step.width),
                short(step.n_active),
                "does not fit" if step.seconds is None else f"{step.seconds:.4g} s",
                "" if step.mfu is None else f"{step.mfu:.1%}",
                f"{step.needed / 2**30:.2f}{limit} GiB",
            )
    print_whole(table, console)
    runs = sum(not point.is_stable for point in points)
    for each in found:
        money = "" if each.usd is None else f", {each.usd:,.2f} USD"
        time = "does not fit" if each.hours is None else f"{duration(each.hours * 3600)} one after another{money}"
        console.print(f"{each.machine.name}: {runs} run{'' if runs == 1 else 's'}, {time}", markup=False)
    priced = [each for each in found if each.usd is not None]
    if len(priced) > 1:
        cheapest = min(priced, key=lambda each: each.usd or 0.0)
        console.print(f"cheapest: {cheapest.machine.name}", markup=False)
    console.print("step times are estimates from the compiler's cycle counts; see docs/planning.md", markup=False)


def _table(spec: SweepSpec, points: Sequence[Point], found: Costs, status: dict[str, str]) -> Table:
    table = Table("run", box=None, header_style="bold", pad_edge=False)
    axes = list(spec.axes)
    names = ("width", "layers", *(axis.rpartition(".")[2] for axis in axes))
    sizes = ("N active", "N total", "steps", "text", "visual", "FLOPs", "6ND", "memory", "time", "USD", "status")
    for title in (*names, *sizes):
        table.add_column(title, justify="right")
    for point in points:
        each, seconds, usd = point.estimate, found.seconds[point.id], found.usd[point.id]
        steps = f"{point.steps:,}{' stable' if point.is_stable else ''}"
        if point.stable_run:
            steps = f"{point.branch_step:,} + {point.steps - point.branch_step:,}"
        table.add_row(
            point.id,
            str(point.config.model.width),
            str(point.config.model.layers),
            *(str(point.labels[axis]) for axis in axes),
            short(each.n_active),
            short(each.n_total),
            steps,
            short(each.text),
            short(each.visual),
            f"{each.flops:.3g}",
            f"{6 * each.n_active * each.tokens / each.flops:.0%}",
            f"{each.memory / 2**30:.2f} GiB",
            "?" if seconds is None else duration(seconds),
            "" if usd is None else f"{usd:,.2f}",
            status[point.id],
        )
    return table


def _time_and_money(found: Costs) -> str:
    time = "time unknown" if found.hours is None else f"{duration(found.hours * 3600)} one after another"
    return time if found.total_usd is None else f"{time}, {found.total_usd:,.2f} USD"


def _print_fault(point: Point, folder: SweepFolder, console: Console) -> None:
    result = folder.result(point.id)
    if result and "error" in result:
        console.print(f"{result['status']} {point.id}: {result['error']}", markup=False)
    elif result and abs(result["flops"] / point.estimate.flops - 1) > _OFF:
        console.print(
            f"note: {point.id} counted {result['flops']:.4g} FLOPs instead of the planned {point.estimate.flops:.4g};"
            " the results contain the counted ones"
        )
