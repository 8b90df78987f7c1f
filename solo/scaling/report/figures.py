"""The figures of the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from solo.drawing import ACCENT, INK, QUIET, WRONG, Drawing, shades, styled
from solo.scaling.laws.bootstrap import Bootstrap
from solo.scaling.laws.cross_check import Curve, isoflop_curves
from solo.scaling.laws.downstream import Downstream
from solo.scaling.laws.fit import Fit
from solo.scaling.laws.hold_out import HoldOut
from solo.scaling.laws.law import Array
from solo.scaling.laws.optimum import along, optimum, variables_at
from solo.scaling.laws.predict import defaults
from solo.scaling.laws.result import Analysis
from solo.scaling.laws.runs import group_sizes
from solo.scaling.report.numbers import large

_MOST_BUDGETS = 12
_MANY = 2000  # points that would make an SVG slow to draw are rasterised
_RASTER = "#6f8fca"  # colour of rasterised points, which cannot follow the colour scheme of the page


@styled
def isoflop_figure(name: str, fitted: Fit) -> Markup | None:
    """Plots loss against size for each budget: runs, law, parabola. Returns None if no sizes share a budget."""
    curves = isoflop_curves(fitted.runs)[-_MOST_BUDGETS:]
    if not curves or not fitted.law.allocates:
        return None
    drawing = Drawing(name, height=4.2)
    axes = drawing.first
    for curve, color in zip(curves, shades(len(curves)), strict=True):
        _draw_isoflop(axes, curve, color, fitted)
    axes.set_xscale("log")
    axes.set_xlabel("active parameters N")
    axes.set_ylabel("loss, nats")
    axes.plot([], [], color=QUIET, label="the law")
    axes.plot([], [], color=QUIET, linestyle=":", label="parabola")
    axes.plot([], [], color=QUIET, linestyle="none", marker="D", markersize=6, label="its minimum")
    axes.legend(loc="upper right", ncols=1, title="FLOPs", title_fontsize=8)
    return drawing.svg(f"Loss against parameters for {len(curves)} budgets of compute")


@styled
def compute_figure(name: str, fitted: Fit, draws: Bootstrap) -> Markup:
    """Plots loss against compute: runs by size, and the law's lowest loss with its bands."""
    drawing = Drawing(name, height=4.0)
    axes, runs = drawing.first, fitted.runs
    flops = np.geomspace(runs.flops.min(), runs.flops.max() * 10, 120)
    at = defaults(fitted)
    best = np.array([optimum(fitted.law, fitted.coefficients, c, runs.flops_factor, at)["loss"] for c in flops])
    spread = np.array([optimum(fitted.law, draws.coefficients, c, runs.flops_factor, at)["loss"] for c in flops])
    _bands(axes, flops, spread)
    axes.plot(flops, best, color=ACCENT, label="lowest loss of the law, 80% and 95%")
    sizes, many = group_sizes(runs.n), len(runs) > _MANY
    bins = np.array_split(np.arange(len(sizes)), min(len(sizes), 8))
    for places, color in zip(bins, shades(len(bins)), strict=True):
        part = np.concatenate([sizes[place] for place in places])
        low, high = (large(float(np.median(runs.n[sizes[place]]))) for place in (places[0], places[-1]))
        label = f"N {low}" if low == high else f"N {low} to {high}"
        axes.scatter(runs.flops[part], runs.loss[part], s=16, color=color, label=label, zorder=3, rasterized=many)
    _beyond(axes, float(runs.flops.max()))
    axes.set_xscale("log")
    axes.set_xlabel("training compute C, FLOPs")
    axes.set_ylabel("loss, nats")
    axes.legend(loc="upper right", ncols=2)
    return drawing.svg("Loss against training compute")


@styled
def optimum_figure(name: str, analysis: Analysis) -> Markup | None:
    """Plots optimal size and tokens against compute, with bands, cross-checks and predictions."""
    fitted, draws = analysis.fit, analysis.bootstrap
    if not fitted.law.allocates:
        return None
    runs, law = fitted.runs, fitted.law
    top = max([float(runs.flops.max()) * 10, *(prediction.flops * 2 for prediction in analysis.predictions)])
    flops = np.geomspace(runs.flops.min(), top, 60)
    drawing = Drawing(name, columns=2, height=3.8)
    at = defaults(fitted)
    spread = optimum(law, draws.columns(), flops, runs.flops_factor, at)
    central = optimum(law, fitted.coefficients, flops, runs.flops_factor, at)
    for place, (axes, title) in enumerate(zip(drawing.axes[0], ("parameters N", "tokens D"), strict=True)):
        _bands(axes, flops, spread["nd"[place]].T)
        axes.plot(flops, central["nd"[place]], color=ACCENT, label="the law, 80% and 95%")
        for check, marker in zip(analysis.cross_checks, ("D", "s"), strict=False):
            if check.optima:
                compute, size = np.array(check.optima).T
                values = size if place == 0 else compute / runs.flops_factor / size
                axes.scatter(
                    compute, values, s=18, marker=marker, facecolor="none", edgecolor=QUIET, label=check.name, zorder=3
                )
        for prediction in analysis.predictions:
            key = "nd"[place]
            value, (low, high) = getattr(prediction, key), prediction.intervals[key]["80"]
            axes.errorbar(
                prediction.flops, value, [[max(value - low, 0)], [max(high - value, 0)]], color=INK, marker="o",
                markersize=4, capsize=3,
            )  # fmt: skip
        _beyond(axes, float(runs.flops.max()))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("training compute C, FLOPs")
        axes.set_title(f"optimal {title}", loc="left")
    drawing.axes[0, 0].legend(loc="upper left")
    return drawing.svg("Optimal parameters and tokens against training compute")


@styled
def contour_figure(name: str, fitted: Fit, held: HoldOut | None) -> Markup | None:
    """Plots contours of equal loss over size and tokens, the runs, and the optimal allocation."""
    if not fitted.law.allocates:
        return None
    runs, law = fitted.runs, fitted.law
    drawing = Drawing(name, height=4.6)
    axes = drawing.first
    n, d = (np.geomspace(values.min() / 2, values.max() * 2, 120) for values in (runs.n, runs.d))
    loss = law.loss(fitted.coefficients, variables_at(n[None, :], d[:, None], defaults(fitted)))
    levels = np.quantile(loss, np.linspace(0.03, 0.97, 12))
    lines = axes.contour(n, d, loss, levels=levels, colors=QUIET, linewidths=0.8)
    axes.clabel(lines, fontsize=7, fmt="%.2f", colors=QUIET)
    flops = np.geomspace(runs.flops.min() / 10, runs.flops.max() * 10, 60)
    best = optimum(law, fitted.coefficients, flops, runs.flops_factor, defaults(fitted))
    axes.plot(best["n"], best["d"], color=ACCENT, label="optimal allocation")
    size = fitted.residuals()
    bound = float(np.max(np.abs(size))) or 1.0
    # Points of many colours are slow to draw, so only some of many are.
    some = np.random.default_rng(0).permutation(len(runs))[:_MANY]
    points = axes.scatter(
        runs.n[some], runs.d[some], c=size[some] * 100, cmap="coolwarm", vmin=-bound * 100, vmax=bound * 100, s=30,
        edgecolor=QUIET, linewidth=0.6, zorder=3,
    )  # fmt: skip
    if held is not None and len(held.runs) <= _MANY:
        axes.scatter(
            held.runs.n, held.runs.d, s=90, facecolor="none", edgecolor=INK, zorder=4, label="held out, then fitted"
        )
    drawing.figure.colorbar(points, ax=axes, label="run above the law, %", pad=0.02).outline.set_edgecolor(QUIET)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(n[0], n[-1])
    axes.set_ylim(d[0], d[-1])
    axes.grid(False)
    axes.set_xlabel("active parameters N")
    axes.set_ylabel("tokens D")
    axes.legend(loc="upper left")
    return drawing.svg("Contours of equal loss over parameters and tokens, with the runs")


@styled
def residual_figure(name: str, fitted: Fit) -> Markup:
    """Plots residuals against compute, tokens per parameter and size: a slope or a bend suggests another law."""
    runs = fitted.runs
    drawing = Drawing(name, columns=3, height=2.9, sharey=True)
    errors = fitted.residuals() * 100
    for axes, values, title in zip(
        drawing.axes[0],
        (runs.flops, runs.d / runs.n, runs.n),
        ("compute C, FLOPs", "tokens per parameter", "active parameters N"),
        strict=True,
    ):
        axes.axhspan(-100 * fitted.scatter, 100 * fitted.scatter, color=ACCENT, alpha=0.12, linewidth=0)
        axes.axhline(0, color=QUIET, linewidth=1)
        axes.scatter(
            values, errors, s=14, color=ACCENT if len(runs) <= _MANY else _RASTER, rasterized=len(runs) > _MANY
        )
        axes.set_xscale("log")
        axes.set_xlabel(title)
    drawing.axes[0, 0].set_ylabel("run above the law, %")
    return drawing.svg("Residuals against compute, tokens per parameter and parameters")


@styled
def bootstrap_figure(name: str, fitted: Fit, draws: Bootstrap) -> Markup:
    """Plots all pairs of coefficients over the draws, to show how they trade off."""
    law = fitted.law
    logs = {f"log10 {key}": np.log10(draws.coefficients[key]) for key in law.amplitudes if key != "E"}
    shapes = [shape.name for shape in law.shapes]
    plain = {key: draws.coefficients[key] for key in ("E", *law.exponents, *shapes)}
    values = {**plain, **logs}
    central = {
        key: np.log10(fitted.coefficients[key[6:]]) if key.startswith("log10 ") else fitted.coefficients[key]
        for key in values
    }
    names = list(values)
    drawing = Drawing(name, rows=len(names), columns=len(names), height=1.45 * len(names))
    for row, below in enumerate(names):
        for column, left in enumerate(names):
            axes = drawing.axes[row, column]
            if column > row:
                axes.set_visible(False)
                continue
            if row == column:
                inner = _inner(values[left])
                bins = 28 if np.ptp(inner) > 1e-9 * np.abs(inner).max() else 1  # without noise all draws are equal
                axes.hist(inner, bins=bins, color=ACCENT, alpha=0.75)
                axes.set_yticks([])
            else:
                axes.scatter(values[left], values[below], s=2, color=_RASTER, alpha=0.5, rasterized=True, linewidth=0)
                axes.plot(central[left], central[below], marker="+", color=WRONG, markersize=8)
                axes.set_ylim(*_view(values[below]))
            axes.set_xlim(*_view(values[left]))
            axes.grid(False)
            axes.tick_params(labelsize=6, labelleft=column == 0 and row > 0, labelbottom=row == len(names) - 1)
            if row == len(names) - 1:
                axes.set_xlabel(left)
            if column == 0 and row > 0:
                axes.set_ylabel(below)
    return drawing.svg("Pairs of coefficients over the draws of the bootstrap")


@styled
def score_figure(name: str, fitted: Fit, task: Downstream, is_error: bool) -> Markup:
    """Plots a task's score against the loss: runs, and both laws."""
    runs = fitted.runs
    has = np.isfinite(runs.score)
    scale = 100.0 if np.nanmax(runs.score) > 1.5 else 1.0
    drawing = Drawing(name, height=3.2)
    axes = drawing.first
    loss = np.linspace(runs.loss[has].min() * 0.93, runs.loss[has].max(), 100)
    for law, style in zip(task.laws, ("-", ":"), strict=True):
        values = law.error(loss) if is_error else 1.0 - law.error(loss)
        axes.plot(loss, scale * values, color=ACCENT, linestyle=style, label=law.form)
    axes.scatter(runs.loss[has], runs.score[has], s=16, color=QUIET, zorder=3)
    axes.set_xlabel("loss, nats")
    axes.set_ylabel(task.column)
    axes.legend()
    return drawing.svg(f"{task.column} against the loss")


def _draw_isoflop(axes: Any, curve: Curve, color: Any, fitted: Fit) -> None:
    n = np.geomspace(curve.runs.n.min() / 1.15, curve.runs.n.max() * 1.15, 80)
    law = along(fitted.law, fitted.coefficients, n, curve.flops / fitted.runs.flops_factor, defaults(fitted))
    axes.plot(n, law, color=color)
    axes.plot(n, np.polyval(curve.parabola, np.log(n)), color=color, linestyle=":")
    axes.scatter(
        curve.runs.n, curve.runs.loss, s=18, color=color, zorder=3, label=f"{curve.flops:.2g}",
        rasterized=len(curve.runs) > _MANY // _MOST_BUDGETS,
    )  # fmt: skip
    if curve.optimum:
        axes.scatter(
            curve.optimum, np.polyval(curve.parabola, np.log(curve.optimum)), s=44, marker="D", facecolor="none",
            edgecolor=color, zorder=4,
        )  # fmt: skip


def _bands(axes: Any, flops: Array, spread: Array) -> None:
    """Fills the 80% and 95% bands of draws [C,J]."""
    for level, alpha in ((95, 0.12), (80, 0.22)):
        low, high = np.percentile(spread, [50 - level / 2, 50 + level / 2], axis=1)
        axes.fill_between(flops, low, high, color=ACCENT, alpha=alpha, linewidth=0)


def _beyond(axes: Any, largest: float) -> None:
    """Marks the largest compute of the runs, beyond which the law extrapolates."""
    axes.axvline(largest, color=WRONG, linewidth=0.9, linestyle="--", label="largest run")


def _view(values: Array) -> tuple[float, float]:
    """Returns axis limits that leave out the most extreme draws."""
    low, high = np.percentile(values, [0.5, 99.5])
    margin = 0.08 * (high - low) + 1e-12
    return float(low - margin), float(high + margin)


def _inner(values: Array) -> Array:
    low, high = _view(values)
    return values[(values >= low) & (values <= high)]
