"""One chapter of a report for each result: a law, joint laws, the best mixture, the best learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

import solo
from solo.scaling.laws.joint import Joint
from solo.scaling.laws.mixture import Mixture
from solo.scaling.laws.rates import RateLaw
from solo.scaling.laws.result import FitResult
from solo.scaling.laws.table import SetAside, Table
from solo.scaling.report import study_sections
from solo.scaling.report.sections import Section, describe, describe_set_aside, describe_table


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and caption."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class Chapter:
    """A part of the report.

    kind        key in the JSON object: fits, joint, mixtures or rates
    formula     line under the title
    refused     why there is no result, or None
    pictures    draws the figures, whose ids begin with the argument
    result      the result of a single law
    """

    kind: str
    title: str
    formula: str
    sections: Sequence[Section]
    refused: str | None
    pictures: Callable[[str], Iterator[Picture]]
    result: FitResult | None = None

    def values(self) -> dict[str, Any]:
        """Returns the JSON values; NaN and infinity become null."""
        merged: dict[str, Any] = {}
        for section in self.sections:
            merged |= section.values
        return finite(merged)


def document(table: Table, chapters: Sequence[Chapter], command: str) -> dict[str, Any]:
    """Returns all results as JSON values. If there is only one law, its entries are also at the top level."""
    kinds = dict.fromkeys(["fits", *(chapter.kind for chapter in chapters)])
    by_kind = {kind: [chapter.values() for chapter in chapters if chapter.kind == kind] for kind in kinds}
    only = by_kind["fits"][0] if len(by_kind["fits"]) == 1 else {}
    data = finite(describe_table(table).values)
    return {**only, "command": command, "version": solo.__version__, **data, **by_kind}


def of_law(result: FitResult) -> Chapter:
    """Returns the chapter of one law."""

    def pictures(name: str) -> Iterator[Picture]:
        # Imported here because Matplotlib takes half a second, and most calls draw nothing.
        from solo.scaling.report.law_pictures import law_pictures

        return law_pictures(name, result)

    return Chapter("fits", result.title, result.spec.law.formula, describe(result), result.refused, pictures, result)


def of_joint(joint: Joint) -> Chapter:
    """Returns the chapter of joint laws."""

    def pictures(name: str) -> Iterator[Picture]:
        from solo.scaling.report.study_figures import frontier_figure

        note = (
            "Left: the lowest loss that each group reaches, with bands of 80%, and the runs. Right: the compute that a"
            f" group needs for the loss of {joint.reference}, relative to it; below 1 it is better."
        )
        yield Picture("The same loss for less compute", note, frontier_figure(name, joint))

    formula = f"{joint.fit.law.formula}: {joint.chosen.name}"
    title = f"{joint.loss} · {', '.join(joint.groups)}"
    return Chapter("joint", title, formula, study_sections.describe_joint(joint), None, pictures)


def of_mixtures(mixtures: Sequence[Mixture]) -> Chapter:
    """Returns the chapter of the best share of image tokens."""

    def pictures(name: str) -> Iterator[Picture]:
        from solo.scaling.report.study_figures import mixture_figure

        note = "Bands of 80%; the dashed lines are the best shares."
        yield Picture("Weighted loss against the share", note, mixture_figure(name, list(mixtures)))

    formula = " + ".join(f"{weight:g} {name}" for name, weight in mixtures[0].weights.items())
    sections = study_sections.describe_mixtures(mixtures)
    return Chapter("mixtures", "Best share of image tokens", formula, sections, None, pictures)


def of_rates(found: RateLaw) -> Chapter:
    """Returns the chapter of the best learning rate or batch size."""

    def pictures(name: str) -> Iterator[Picture]:
        from solo.scaling.report.study_figures import rates_figure

        note = "Left: parabolas of one curvature, whose minima lie on the law. Right: their minima."
        yield Picture(f"Loss against {found.column}", note, rates_figure(name, found))

    title = f"{found.loss} · best {found.column}"
    sections = study_sections.describe_rates(found)
    return Chapter("rates", title, f"{found.column} = R N^a D^b", sections, None, pictures)


def of_refusal(kind: str, title: str, refused: str, aside: Sequence[SetAside] = ()) -> Chapter:
    """Returns the chapter of a result that was refused."""
    section = Section("", {"title": title, "refused": refused}, warnings=(f"Refused: {refused}",))
    return Chapter(kind, title, "", [section, describe_set_aside(aside)], refused, lambda name: iter(()))


def finite(node: Any) -> Any:
    """Returns a JSON value with null in place of NaN and infinity, which JSON lacks."""
    if isinstance(node, dict):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not abs(node) < float("inf") else node
