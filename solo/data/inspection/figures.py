"""Histograms of sources, and the shares of a mixture over the steps of a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from solo.config import ImageConfig
from solo.data.planning.row_shape import sample_index
from solo.data.store.index import SourceIndex
from solo.drawing import ACCENT, Drawing, shades, styled

_RECORDS = 100_000  # of a source; a larger one is sampled


@styled
def histograms(name: str, index: SourceIndex, image: ImageConfig) -> Markup:
    """Draws patches and text tokens per record, and the aspect ratios of images, of one source."""
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
        ticks = np.asarray([-3, -2, -1, 0, 1, 2, 3])
        low, high = np.log2(aspect).min() - 0.5, np.log2(aspect).max() + 0.5
        chosen = ticks[(ticks >= low) & (ticks <= high)]
        plots[2].set_xticks(chosen, [f"{2**tick}:1" if tick >= 0 else f"1:{2**-tick}" for tick in chosen.tolist()])
        plots[2].set_title("width : height")
        plots[2].set_yticks([])
    return drawing.svg(f"Histograms of {name}: text tokens and patches per record, aspect ratios of images")


def _histogram(axes: object, values: np.ndarray, title: str) -> None:
    plot: object = axes
    top = float(np.quantile(values, 0.995)) if len(values) else 1.0
    plot.hist(np.minimum(values, top), bins=40, color=ACCENT)  # type: ignore[attr-defined]
    plot.set_title(title)  # type: ignore[attr-defined]
    plot.set_yticks([])  # type: ignore[attr-defined]


@styled
def shares(stage: str, steps: Sequence[int], drawn: Mapping[str, Sequence[float]]) -> Markup:
    """Draws the share of slots that each source has, in windows of steps."""
    drawing = Drawing(f"shares-{stage}", height=2.4)
    axes = drawing.first
    axes.stackplot(steps, np.asarray(list(drawn.values())), labels=list(drawn), colors=shades(len(drawn)))
    axes.set_ylim(0, 1)
    axes.set_xlabel("step")
    axes.set_title("share of documents")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawing.svg(f"Share of documents of each source over the steps of stage {stage}")
