"""A forecast for people: tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from solo.planning.fit import in_words
from solo.planning.forecast import BASIS, Forecast
from solo.planning.search import Found

_OTHER = "what the compiler adds"


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
    console.print(_memory(found))
    console.print(_work(found))
    if found.collectives:
        console.print(_collectives(found))
    for line in _time(found):
        console.print(line, highlight=False)


def show_recipe(recipe: Mapping[str, Any], console: Console) -> None:
    """Print hours and cost, and what the figures are worth; `recipe` as `as_json` gives it."""
    console.rule("recipe", align="left")
    total = recipe["recipe"]
    if total["hours"] is None:
        console.print("no time and no cost: this compiler gives no cycles, and a step that does not fit has none")
    else:
        cost = "of unknown price" if total["usd"] is None else f"US$ {total['usd']:,.0f} ({total['price']})"
        console.print(f"{total['hours']:,.1f} hours, {cost}", highlight=False)
    for title, basis in BASIS.items():
        console.print(f"[dim]{title}: {basis}[/dim]", highlight=False)


def show_search(found: Found, console: Console) -> None:
    """Print everything that a search compiled, the best last."""
    table = _table("setting", ("memory", "step s", "MFU", "tokens/s"))
    order = sorted(found.compiled, key=lambda pair: (pair[1].fits, pair[1].tokens_per_second or 0.0))
    for overrides, each in order:
        step = f"{each.time.total:.3f}" if each.time else "?"
        mfu = f"{each.mfu:.1%}" if each.mfu else "?"
        speed = f"{each.tokens_per_second:,.0f}" if each.tokens_per_second else "?"
        size = in_words(each.needed)
        table.add_row(" ".join(overrides), size if each.fits else f"{size} too large", step, mfu, speed)
    console.print(table)
    console.print(
        f"{found.pruned} settings were dropped because state and saved activations alone do not fit;"
        f" {found.left} less promising ones were not compiled (--tries)",
        highlight=False,
    )


def _memory(found: Forecast) -> Table:
    program, count = found.program, found.by_hand
    table = _table("memory of a device", ("compiled", "by hand"))
    table.add_row("parameters", *_sizes(count.parameters, count.parameters))
    table.add_row("optimizer", *_sizes(count.optimizer, count.optimizer))
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
    limit = "unknown" if found.limit is None else in_words(found.limit)
    table.add_row("limit", limit, "fits" if found.fits else "[bold red]does not fit[/bold red]")
    return table


def _work(found: Forecast) -> Table:
    work = found.work
    table = _table("TFLOPs of a step, all devices", ("useful", "computed"))
    for part, flops in work.computed.items():
        table.add_row(part, f"{work.useful[part] / 1e12:,.1f}", f"{flops / 1e12:,.1f}")
    table.add_section()
    useful, computed = sum(work.useful.values()) / 1e12, sum(work.computed.values()) / 1e12
    table.add_row("all", f"{useful:,.1f}", f"{computed:,.1f}")
    table.add_row("useful share", f"{work.useful_share:.1%}", "")
    return table


def _collectives(found: Forecast) -> Table:
    table = _table("collectives of a step", ("a step", "GB a device", "seconds", "meanwhile"))
    for each in found.collectives:
        computes = "computes" if each.overlapped else "waits"
        name = f"{each.name}, network" if each.network else each.name
        table.add_row(name, f"{each.count:,}", f"{each.bytes / 1e9:,.3f}", f"{each.seconds:.4f}", computes)
    return table


def _time(found: Forecast) -> Iterator[str]:
    time, tokens = found.time, found.tokens_per_second
    if time is None or tokens is None or found.hours is None:
        yield "step time: not estimated, there are no cycle counts"
        return
    mfu = "unknown" if found.mfu is None else f"{found.mfu:.1%}"
    chips = found.machine.chips * found.machine.slices
    yield (
        f"step {time.total:.3f} s (model): products {time.products:.3f}, elementwise {time.elementwise:.3f},"
        f" attention kernels {time.kernels:.3f}, waiting for collectives {time.waited:.3f}"
        f" (others, {time.overlapped:.3f}, run meanwhile)"
    )
    yield f"MFU {mfu}, {tokens:,.0f} tokens/s ({tokens / chips:,.0f} a chip); {found.rows.num_steps:,} steps"
    yield f"{found.hours:,.1f} hours"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _sizes(*sizes: int | None) -> list[str]:
    return ["" if size is None else in_words(size) for size in sizes]
