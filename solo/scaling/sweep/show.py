"""A sweep on the terminal: its runs, what they come to, and how they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from solo.evaluation.report import duration, short
from solo.scaling.sweep.costs import Costs
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import Point
from solo.scaling.sweep.spec import SweepSpec

_WIDEST = 1000
_OFF = 0.01  # planned and counted FLOPs that differ by more are worth a note


def print_sweep(
    spec: SweepSpec, points: Sequence[Point], folder: SweepFolder, found: Costs, missing: Costs, console: Console
) -> None:
    """The table that is printed before anything starts."""
    status = {point.id: folder.status(point.id) for point in points}
    table = _table(spec, points, found, status)
    # Whole even where the terminal is narrow, or there is none: an id that is cut off is of no use to --run.
    width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    console.width = max(width, console.width)
    console.print(table)
    runs = sum(not point.is_trunk for point in points)
    trunks = len(points) - runs
    console.print(
        f"{runs} runs{f' and {trunks} trunks' if trunks else ''}, {found.flops:.4g} FLOPs"
        f"{' (a branch pays its decay alone)' if trunks else ''}; {_time_and_money(found)}"
    )
    console.print(f"time: {found.speed.source}; memory is an estimate", markup=False)
    console.print("status: " + ", ".join(f"{count} {name}" for name, count in Counter(status.values()).items()))
    if 0 < len(missing.seconds) < len(points):
        console.print(f"missing: {len(missing.seconds)}, {missing.flops:.4g} FLOPs; {_time_and_money(missing)}")
    for point in points:
        _print_fault(point, folder, console)
    if strangers := folder.strangers(points):
        console.print(
            f"{len(strangers)} runs in {folder.path} are not of this sweep's file as it is now, and are left alone:"
            f" {', '.join(strangers[:5])}{', ...' if len(strangers) > 5 else ''}"
        )


def _table(spec: SweepSpec, points: Sequence[Point], found: Costs, status: dict[str, str]) -> Table:
    table = Table("run", box=None, header_style="bold", pad_edge=False)
    axes = list(spec.axes)
    for title in ("width", "layers", *(axis.rpartition(".")[2] for axis in axes)):
        table.add_column(title, justify="right")
    for title in ("N active", "N total", "steps", "text", "visual", "FLOPs", "6ND", "memory", "time", "USD", "status"):
        table.add_column(title, justify="right")
    for point in points:
        each, seconds, usd = point.estimate, found.seconds[point.id], found.usd[point.id]
        steps = f"{point.branch_step:,} + {point.steps - point.branch_step:,}" if point.trunk else f"{point.steps:,}"
        table.add_row(
            point.id,
            str(point.config.model.width),
            str(point.config.model.layers),
            *(str(point.labels[axis]) for axis in axes),
            short(each.n_active),
            short(each.n_total),
            f"{steps} trunk" if point.is_trunk else steps,
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
    time = "time not known" if found.hours is None else f"{duration(found.hours * 3600)} one after another"
    return time if found.total_usd is None else f"{time}, {found.total_usd:,.2f} USD"


def _print_fault(point: Point, folder: SweepFolder, console: Console) -> None:
    result = folder.result(point.id)
    if result and "error" in result:
        console.print(f"{result['status']} {point.id}: {result['error']}", markup=False)
    elif result and abs(result["flops"] / point.estimate.flops - 1) > _OFF:
        console.print(
            f"note: {point.id} counted {result['flops']:.4g} FLOPs where {point.estimate.flops:.4g} were planned; the"
            " counted ones are in the results"
        )
