"""Which figures a law gets, and their captions."""

from __future__ import annotations

from collections.abc import Iterator

from solo.scaling.laws.result import FitResult
from solo.scaling.report import figures
from solo.scaling.report.chapters import Picture


def law_pictures(name: str, result: FitResult) -> Iterator[Picture]:
    """Draws the figures of one law; their ids begin with `name`."""
    analysis = result.analysis
    if analysis is None:
        return
    fitted, draws = analysis.fit, analysis.bootstrap
    made = (
        (
            "Equal compute",
            "Each colour is a budget. The parabolas are a cross-check, biased by the width and centre of their grids.",
            figures.isoflop_figure(f"{name}a", fitted),
        ),
        (
            "Loss against compute",
            "The law's lowest loss, which a run reaches only at the optimal size for its compute.",
            figures.compute_figure(f"{name}b", fitted, draws),
        ),
        (
            "Optimal size and tokens",
            "Bands of 80% and 95%. Nothing was measured to the right of the dashed line.",
            figures.optimum_figure(f"{name}c", analysis),
        ),
        (
            "Sizes and tokens",
            "Contours of equal loss, the runs, and how far each lies above the law.",
            figures.contour_figure(f"{name}d", fitted, analysis.hold_out),
        ),
        (
            "Residuals",
            "They should show neither slope nor bend. The band is the scatter.",
            figures.residual_figure(f"{name}e", fitted),
        ),
        (
            "Bootstrap draws",
            "Long and thin means that coefficients compensate each other: trust the law more than its coefficients.",
            figures.bootstrap_figure(f"{name}f", fitted, draws),
        ),
    )
    yield from (Picture(title, note, svg) for title, note, svg in made if svg is not None)
    if analysis.downstream is not None:
        svg = figures.score_figure(f"{name}g", fitted, analysis.downstream, result.spec.score_is_error)
        yield Picture(analysis.downstream.column, "The score against the loss.", svg)
