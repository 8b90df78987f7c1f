"""Plots of hyperparameter transfer: the scale of activations, and the best learning rate, against width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from solo.config import ConfigError
from solo.drawing import ACCENT, QUIET, WRONG, shades, styled
from solo.outputs import Output
from solo.scaling.sweep.coordinates import LOGITS, Coordinates
from solo.scaling.sweep.rates import Curve

SUFFIXES = (".png", ".svg", ".pdf")
_STYLES = ("-", "--", ":", "-.")


def check_suffix(path: Path) -> None:
    """Raises ConfigError if the suffix is not that of an image. Called before the computation."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected an image, one of {', '.join(SUFFIXES)}")


@styled
def plot_coordinates(found: Mapping[str, Sequence[Sequence[Coordinates]]], out: Output) -> None:
    """Plots RMS against width: a column per parametrisation, a row per quantity, a line per step."""
    names = list(next(iter(found.values()))[0][-1].scales)
    figure = _figure(max(8.8, 2.6 * len(found)), 1.9 * len(names))
    axes = figure.subplots(len(names), len(found), squeeze=False, sharex=True, sharey="row")
    for column, (kind, sizes) in enumerate(found.items()):
        colours = shades(len(sizes[0]))
        for row, name in enumerate(names):
            axis = axes[row][column]
            for step in range(1 if name == LOGITS else 0, len(sizes[0])):
                steps = [size[step] for size in sizes]
                label = f"{step} steps" if step != 1 else "1 step"
                x, y = [each.width for each in steps], [each.scales[name] for each in steps]
                axis.plot(x, y, "o-", markersize=3, color=colours[step], label=label)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:.3g}")
            axis.set_ylabel(name if column == 0 else "")
        axes[0][column].set_title(kind)
        axes[-1][column].set_xlabel("width")
    # The legend is outside the axes, because the lines fill them.
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(lines))
    _save(figure, out)


@styled
def plot_rates(curves: Sequence[Curve], loss: str, out: Output) -> None:
    """Plots loss against learning rate, and the best rate against width.

    Without groups there is a colour for each width, with groups a colour for each of them.
    """
    groups = list(dict.fromkeys(curve.group for curve in curves))
    widths = sorted({curve.width for curve in curves})
    figure = _figure(8.8, 3.6 if len(groups) == 1 else 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = shades(len(widths) if len(groups) == 1 else len(groups))
    for curve in curves:
        if len(groups) == 1:
            colour, style = colours[widths.index(curve.width)], "-"
        else:
            colour, style = colours[groups.index(curve.group)], _STYLES[widths.index(curve.width) % len(_STYLES)]
        left.plot(curve.rates, curve.losses, f"o{style}", markersize=4, color=colour, label=curve.name)
        if curve.best is not None:
            left.plot([curve.best], [curve.best_loss], "*", markersize=11, color=colour)
    left.set(xscale="log", xlabel="learning rate", ylabel=f"loss {loss}")
    if len(groups) == 1:
        left.legend()
    else:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for group, colour in zip(groups, [ACCENT] if len(groups) == 1 else colours, strict=True):
        inside = [curve for curve in curves if curve.group == group and curve.best is not None]
        right.plot(
            [curve.width for curve in inside], [curve.best for curve in inside], "*-", markersize=10, color=colour
        )
    if edge := [curve for curve in curves if curve.best is None]:
        lowest = [curve.rates[curve.losses.index(min(curve.losses))] for curve in edge]
        right.plot([curve.width for curve in edge], lowest, "x", color=WRONG, label="at the edge of the rates tried")
        right.legend()
    tried = [rate for curve in curves for rate in curve.rates]
    right.set(xscale="log", yscale="log", xlabel="width", ylabel="best learning rate")
    right.set_ylim(min(tried) / 1.3, max(tried) * 1.3)
    right.set_xticks(widths, [str(width) for width in widths])
    right.minorticks_off()
    right.tick_params(axis="both", colors=QUIET)
    _save(figure, out)


def _figure(width: float, height: float) -> Any:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _save(figure: Any, out: Output) -> None:
    buffer, kind = BytesIO(), out.path.suffix[1:]
    metadata = {"Software" if kind == "png" else "Creator": out.mark}
    figure.savefig(buffer, format=kind, dpi=150, facecolor="white", metadata=metadata)
    out.write_bytes(buffer.getvalue())
