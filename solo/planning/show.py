"""Prints forecasts as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from solo.planning.evaluation import EvaluatorForecast
from solo.planning.forecast import BASIS, Forecast
from solo.planning.memory import format_bytes
from solo.planning.option_search import OptionSearch
from solo.planning.search import SearchResult

_OTHER = "added by the compiler"
_FITS = {True: "fits", False: "[bold red]does not fit[/bold red]"}


def show_forecast(found: Forecast, console: Console) -> None:
    """Print one stage's step."""
    shape, stage = found.rows.shape, found.stage
    console.rule(f"stage {stage.name} on {found.machine.slices} x {found.machine.name}", align="left")
    mesh = found.as_dict()["mesh"]
    console.print(
        f"{stage.batch_rows:,} rows of {shape.patch_slots:,} patches and {shape.text_slots:,} text tokens,"
        f" {shape.target_slots:,} targets: {found.rows.source}\n"
        f"mesh {' x '.join(f'{axis} {size}' for axis, size in mesh.items())};"
        f" accumulate {stage.accumulate}, remat {found.config.model.remat},"
        f" attention {found.config.model.attention_implementation}",
        highlight=False,
    )
    for line in found.replicated:
        console.print(line, highlight=False)
    console.print(_memory(found))
    console.print(_flops(found))
    if found.collectives:
        console.print(_collectives(found))
    for line in _time(found):
        console.print(line, highlight=False)


def show_evaluation(found: Sequence[EvaluatorForecast], console: Console) -> None:
    """Print the memory of every evaluator, or nothing if there are none."""
    if not found:
        return
    console.rule("evaluation, beside the state of training", align="left")
    table = _table("memory of a device", ("rows", "slots", "program", "with the state", ""))
    for each in found:
        size = f"{each.rows:,}", f"{each.patch_slots + each.text_slots + each.new_tokens:,}"
        for program in each.programs:
            total = each.kept + program.total
            fits = _FITS[each.limit is None or total <= each.limit]
            table.add_row(f"{each.name}: {program.name}", *size, *_sizes(program.total, total), fits)
        if each.refused:
            table.add_row(f"{each.name}: {each.refused[0]}", *size, *_sizes(each.refused[1], each.needed), _FITS[False])
    console.print(table)
    for source in dict.fromkeys(each.source for each in found):
        console.print(f"rows: {source}", highlight=False)


def show_recipe(recipe: Mapping[str, Any], console: Console) -> None:
    """Print hours and cost, unknown and assumed values of the chip, and how reliable the figures are.

    Args:
        recipe: from `as_json`.
    """
    console.rule("recipe", align="left")
    total = recipe["recipe"]
    if total["hours"] is None:
        reasons = dict.fromkeys(each["no_step"] for each in recipe["stages"] if each["no_step"])
        console.print(f"no time and no cost: {'; '.join(reasons)}", highlight=False)
    else:
        cost = "price unknown" if total["usd"] is None else f"US$ {total['usd']:,.0f} ({total['price']})"
        console.print(f"{total['hours']:,.1f} hours, {cost}", highlight=False)
    machine = recipe["machine"]
    for title in ("unknown", "assumed"):
        if values := "; ".join(f"{name} ({text})" for name, text in machine[title].items()):
            console.print(f"{title} for {machine['name']}: {values}", highlight=False)
    for title, basis in BASIS.items():
        console.print(f"[dim]{title}: {basis}[/dim]", highlight=False)


def show_search(found: SearchResult, console: Console) -> None:
    """Print all settings that a search compiled, the best last."""
    table = _table("setting", ("memory", "step s", "MFU", "tokens/s"))
    order = sorted(found.compiled, key=lambda pair: (pair[1].fits, pair[1].tokens_per_second or 0.0))
    for overrides, each in order:
        step = f"{each.time.total:.3f}" if each.time else "?"
        mfu = f"{each.mfu:.1%}" if each.mfu else "?"
        speed = f"{each.tokens_per_second:,.0f}" if each.tokens_per_second else "?"
        size = format_bytes(each.needed)
        table.add_row(" ".join(overrides), size if each.fits else f"{size} too large", step, mfu, speed)
    console.print(table)
    console.print(
        f"{found.pruned} settings were dropped, since state and saved activations alone do not fit;"
        f" {found.left} less promising ones were not compiled (--tries)",
        highlight=False,
    )


def show_option_search(found: OptionSearch, console: Console) -> None:
    """Print the step with every trial's options, and whether they were kept."""
    table = _table("compiler options", ("memory", "step s", "MFU", "compiled in", ""))
    rows: list[tuple[str, Forecast | None, str]] = [("none but those of the chip and the config", found.first, "")]
    rows += [(each.words, each.found, (each.refusal and "refused") or "kept" * each.kept) for each in found.tried]
    for words, each, remark in rows:
        table.add_row(words, *_sizes_and_times(each), remark)
    console.print(table)
    for tried in found.tried:
        if tried.refusal:
            console.print(f"{tried.words}: refused: {tried.refusal}", highlight=False, markup=False)


def _sizes_and_times(found: Forecast | None) -> tuple[str, str, str, str]:
    if found is None:
        return "", "", "", ""
    size = format_bytes(found.needed)
    if found.time is None or found.program is None:
        return f"{size} too large", "", "", ""
    mfu = f"{found.mfu:.1%}" if found.mfu else "?"
    return size, f"{found.time.total:.3f}", mfu, f"{found.program.seconds:.0f} s"


def _memory(found: Forecast) -> Table:
    program, count = found.program, found.by_hand
    table = _table("memory of a device", ("compiled", "estimated"))
    table.add_row("parameters", *_sizes(count.parameters, count.parameters))
    table.add_row("optimizer", *_sizes(count.optimizer, count.optimizer))
    if count.averages:
        table.add_row("averages", *_sizes(count.averages, count.averages))
    table.add_row("batch", *_sizes(count.batch, count.batch))
    if program:
        table.add_row(f"arguments: {_OTHER}", *_sizes(program.arguments - count.arguments, None))
        table.add_row("activations, gradients, gathered weights", *_sizes(program.temporaries, count.temporaries))
        table.add_row("outputs and program", *_sizes(program.outputs + program.code, None))
    else:
        refused = found.refusal.temporaries if found.refusal else None
        table.add_row("activations, gradients, gathered weights", *_sizes(refused, count.temporaries))
    for part in ("saved", "gradients", "layer", "vocabulary"):
        table.add_row(f"  of which {part}", *_sizes(None, getattr(count, part)))
    table.add_section()
    table.add_row("all", *_sizes(found.needed, count.total))
    limit = "unknown" if found.limit is None else format_bytes(found.limit)
    table.add_row("limit", limit, _FITS[found.fits])
    return table


def _flops(found: Forecast) -> Table:
    flops = found.flops
    table = _table("TFLOPs of a step, all devices", ("useful", "computed"))
    for part, computed in flops.computed.items():
        table.add_row(part, f"{flops.useful[part] / 1e12:,.1f}", f"{computed / 1e12:,.1f}")
    table.add_section()
    useful, total = sum(flops.useful.values()) / 1e12, sum(flops.computed.values()) / 1e12
    table.add_row("all", f"{useful:,.1f}", f"{total:,.1f}")
    table.add_row("useful share", f"{flops.useful_share:.1%}", "")
    return table


def _collectives(found: Forecast) -> Table:
    table = _table("collectives of a step", ("per step", "GB per device", "seconds", "computation"))
    for each in found.collectives:
        computes = "overlaps" if each.overlapped else "waits"
        name = f"{each.name}, network" if each.network else each.name
        seconds = "unknown" if each.seconds is None else f"{each.seconds:.4f}"
        table.add_row(name, f"{each.count:,}", f"{each.bytes / 1e9:,.3f}", seconds, computes)
    return table


def _time(found: Forecast) -> Iterator[str]:
    time, tokens = found.time, found.tokens_per_second
    if time is None or tokens is None or found.hours is None:
        yield f"step time: no estimate: {found.no_time}"
        return
    mfu = "unknown" if found.mfu is None else f"{found.mfu:.1%}"
    yield (
        f"step {time.total:.3f} s (model): products {time.products:.3f}, elementwise {time.elementwise:.3f},"
        f" attention kernels {time.kernels:.3f}, awaited collectives {time.waited:.3f}"
        f" (overlapped ones: {time.overlapped:.3f})"
    )
    per_chip = tokens / found.machine.all_chips
    yield f"MFU {mfu}, {tokens:,.0f} tokens/s ({per_chip:,.0f} per chip); {found.rows.num_steps:,} steps"
    yield f"{found.hours:,.1f} hours"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _sizes(*sizes: int | None) -> list[str]:
    return ["" if size is None else format_bytes(size) for size in sizes]
