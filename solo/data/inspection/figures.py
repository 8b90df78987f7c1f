"""Histograms of sources, and plots of the mixture over the steps of a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from solo.config import ImageConfig
from solo.data.planning.row_shape import sample_index
from solo.data.store.index import SourceIndex
from solo.drawing import ACCENT, Drawing, shades, styled

_RECORDS = 100_000  # larger sources are sampled
_RATIOS = 6  # number of aspect ratio labels that fit side by side
_LEGEND = 0.2  # inches for each source


@styled
def histograms(name: str, index: SourceIndex, image: ImageConfig) -> Markup:
    """Draws histograms of one source: patches and text tokens per record, and aspect ratios of images."""
    sampled = sample_index(index, _RECORDS)
    counts = sampled.counts(image)
    sizes = sampled.image_sizes(image.exif)
    drawing = Drawing(f"histogram-{name}", columns=3 if len(sizes) else 1, height=2.1)
    plots = drawing.axes[0]
    _histogram(plots[0], counts[:, 1], "text tokens per record")
    if len(sizes):
        _histogram(plots[1], counts[:, 0], "patches per record")
        aspect = sizes[:, 0] / np.maximum(sizes[:, 1], 1)
        plots[2].hist(np.log2(aspect), bins=40, color=ACCENT)
        low, high = int(np.floor(np.log2(aspect).min())), int(np.ceil(np.log2(aspect).max()))
        apart = max(1, -(-(high - low) // _RATIOS))
        ticks = [tick for tick in range(low, high + 1) if tick % apart == 0]
        plots[2].set_xticks(ticks, [f"{2**tick}:1" if tick >= 0 else f"1:{2**-tick}" for tick in ticks])
        plots[2].set_title("width : height")
        plots[2].set_yticks([])
    return drawing.svg(f"Histograms of {name}: text tokens and patches per record, aspect ratios of images")


def _histogram(axes: object, values: np.ndarray, title: str) -> None:
    plot: object = axes
    top = float(np.quantile(values, 0.995)) if len(values) else 1.0
    plot.hist(np.minimum(values, top), bins=40, color=ACCENT)  # type: ignore[attr-defined]
    plot.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
    plot.set_title(title)  # type: ignore[attr-defined]
    plot.set_yticks([])  # type: ignore[attr-defined]


@styled
def shares(stage: str, title: str, edges: Sequence[int], drawn: Mapping[str, Sequence[float]]) -> Markup:
    """Draws each source's share of the documents between consecutive steps in `edges`."""
    drawing = Drawing(f"shares-{stage}", height=max(2.4, _LEGEND * len(drawn) + 0.4))
    axes = drawing.first
    steps, values = np.repeat(edges, 2)[1:-1], np.repeat(np.asarray(list(drawn.values())), 2, axis=1)
    axes.stackplot(steps, values, labels=list(drawn), colors=shades(len(drawn)))
    axes.set_ylim(0, 1)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    axes.set_title(title)
    # In the order of the stacked areas, from the top.
    axes.legend(*(each[::-1] for each in axes.get_legend_handles_labels()), loc="center left", bbox_to_anchor=(1, 0.5))
    return drawing.svg(f"Share of documents of each source over the steps of stage {stage}")
