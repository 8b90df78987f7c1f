"""Figures of results that combine laws."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from solo.drawing import QUIET, WRONG, Drawing, shades, styled
from solo.scaling.laws.joint import Joint
from solo.scaling.laws.mixture import Mixture
from solo.scaling.laws.rates import RateLaw
from solo.scaling.report.numbers import large


@styled
def frontier_figure(name: str, joint: Joint) -> Markup:
    """Plots the lowest loss of each group against compute with 80% bands, the runs, and the ratios of compute."""
    drawing = Drawing(name, columns=2, height=4.0)
    left, right = drawing.axes[0]
    runs = joint.runs
    flops = np.geomspace(runs.flops.min(), runs.flops.max() * 3, 50)
    colors = dict(zip(joint.groups, shades(len(joint.groups)), strict=True))
    for place, group in enumerate(joint.groups):
        part = runs[runs.group == place]
        best, spread = joint.frontier(group, flops)
        low, high = np.percentile(spread, [10, 90], axis=0)
        left.fill_between(flops, low, high, color=colors[group], alpha=0.2, linewidth=0)
        left.plot(flops, best, color=colors[group], label=group)
        left.scatter(part.flops, part.loss, s=10, color=colors[group], alpha=0.6, rasterized=len(part) > 2000)
    left.set_title("lowest loss, nats", loc="left")
    left.legend(loc="upper right")
    for each in joint.comparisons:
        where, ratio, low, high = np.where(np.isfinite(each.curve.T), each.curve.T, np.nan)
        right.fill_between(where, low, high, color=colors[each.group], alpha=0.2, linewidth=0)
        right.plot(where, ratio, color=colors[each.group], label=each.group)
    right.axhline(1.0, color=QUIET, linewidth=1, linestyle=":")
    if joint.comparisons:
        right.axvline(joint.comparisons[0].flops, color=WRONG, linewidth=0.9, linestyle="--")
    right.set_title(f"compute to reach the loss of {joint.reference}, relative", loc="left")
    right.set_yscale("log")
    ticks = [tick for tick in (0.01, 0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10, 100)]
    low_end, high_end = right.get_ylim()
    shown = [tick for tick in ticks if low_end <= tick <= high_end]
    right.set_yticks(shown, [f"{tick:g}" for tick in shown], minor=False)
    right.minorticks_off()
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("training compute C, FLOPs")
    right.legend(loc="best")
    return drawing.svg("Lowest loss of each group against compute, and the compute to reach the same loss")


@styled
def mixture_figure(name: str, mixtures: list[Mixture]) -> Markup:
    """Plots what shares give up of the weighted loss, with 80% bands."""
    drawing = Drawing(name, height=3.4)
    axes = drawing.first
    for each, color in zip(mixtures, shades(len(mixtures)), strict=True):
        share, central, low, high = each.curve.T
        best = central.min()
        axes.fill_between(share, 100 * (low / best - 1), 100 * (high / best - 1), color=color, alpha=0.15, linewidth=0)
        axes.plot(share, 100 * (central / best - 1), color=color, label=f"{each.flops:.3g} FLOPs")
        axes.axvline(each.share[0], color=color, linewidth=0.9, linestyle="--")
    axes.set_xlabel("share of image tokens")
    axes.set_ylabel("weighted loss above its best, %")
    axes.legend()
    return drawing.svg("Weighted loss against the share of image tokens")


@styled
def rates_figure(name: str, found: RateLaw) -> Markup:
    """Plots losses against the setting for each size and length, and the best settings against N."""
    drawing = Drawing(name, columns=2, height=3.8)
    left, right = drawing.axes[0]
    for cell, color in zip(found.cells, shades(len(found.cells)), strict=True):
        lowest = cell.losses.min()
        line = np.geomspace(cell.settings.min(), cell.settings.max(), 40)
        parabola = found.values["curvature"] * np.log(line / cell.best[0]) ** 2
        level = np.mean(np.log(cell.losses) - found.values["curvature"] * np.log(cell.settings / cell.best[0]) ** 2)
        left.plot(line, 100 * (np.exp(level + parabola) / lowest - 1), color=color)
        label = f"N {large(cell.n)}, D {large(cell.d)}" if len(found.cells) <= 8 else None
        left.scatter(cell.settings, 100 * (cell.losses / lowest - 1), s=14, color=color, label=label)
        low, high = cell.best[1]
        error = [[max(cell.best[0] - low, 0)], [max(high - cell.best[0], 0)]]
        right.errorbar(cell.n, cell.best[0], error, color=color, marker="o", markersize=4, capsize=3)
        right.scatter(cell.n, cell.published, marker="x", color=QUIET, zorder=3)
    left.set_title("loss above the lowest of its size and length, %", loc="left")
    left.set_xlabel(found.column)
    right.set_title(f"best {found.column}, 80%; crosses: published", loc="left")
    right.set_xlabel("active parameters N")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log")
    if len(found.cells) <= 8:
        left.legend(loc="best")
    return drawing.svg(f"Loss against {found.column}, and the best {found.column} against parameters")
