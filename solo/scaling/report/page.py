"""Sections and figures as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import solo
from solo.scaling.laws.result import FitResult
from solo.scaling.laws.table import Table
from solo.scaling.report import figures
from solo.scaling.report.sections import describe, describe_set_aside, describe_table

_MOST_ROWS = 60


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and caption."""

    title: str
    note: str
    svg: Markup


def render(table: Table, results: Sequence[FitResult], command: str) -> str:
    """Returns the page.

    Args:
        table: the table that was read.
        results: one result for each law.
        command: the command that made the page.
    """
    source = files("solo.scaling.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        table=table,
        facts=describe_table(table, results).rows,
        laws=[_law(place, result) for place, result in enumerate(results, start=1)],
        set_aside=describe_set_aside(table.set_aside, "Set aside"),
        command=command,
        version=solo.__version__,
        most_rows=_MOST_ROWS,
    )


def _law(place: int, result: FitResult) -> dict[str, Any]:
    return {
        "anchor": f"law-{place}",
        "title": result.title,
        "formula": result.spec.law.formula,
        "sections": describe(result),
        "pictures": list(_pictures(f"law{place}", result)),
    }


def _pictures(name: str, result: FitResult) -> Iterator[Picture]:
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
