"""Describes results that combine laws: joint laws of groups, the best mixture, the best learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from solo.scaling.laws.bootstrap import intervals
from solo.scaling.laws.joint import LEVEL, SEPARATE, Comparison, Joint
from solo.scaling.laws.mixture import Mixture
from solo.scaling.laws.rates import RateLaw
from solo.scaling.report.numbers import figure, large, span
from solo.scaling.report.sections import Section


def describe_joint(joint: Joint) -> list[Section]:
    """Describes joint laws: the answer, the tests, the coefficients."""
    return [_answers(joint), _tests(joint), _coefficients(joint)]


def answer(comparison: Comparison, reference: str) -> str:
    """Returns a comparison in words."""
    low, high = comparison.intervals["80"]
    what = f"{comparison.group} reaches {reference}'s loss at {comparison.flops:.3g} FLOPs"
    if comparison.ratio == float("inf"):
        return f"{comparison.group} does not reach {reference}'s loss at {comparison.flops:.3g} FLOPs with any compute"
    ends = f"{_times(low)} to {_times(high)}"
    verdict = "" if low > 1 or high < 1 else "; the interval contains 1, so the runs do not tell them apart"
    return f"{what} with {_times(comparison.ratio)} times the compute (80%: {ends}){verdict}"


def _times(value: float) -> str:
    return "infinitely many" if value == float("inf") else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _answers(joint: Joint) -> Section:
    values = {
        "loss": joint.loss,
        "groups": list(joint.groups),
        "reference": joint.reference,
        "chosen": joint.chosen.name,
        "comparisons": [{**asdict(each), "curve": each.curve.tolist()} for each in joint.comparisons],
    }
    return Section("", values, answers=tuple(answer(each, joint.reference) for each in joint.comparisons))


def _tests(joint: Joint) -> Section:
    rows = []
    for model in joint.models:
        cells = [model.name + ("  (chosen)" if model is joint.chosen else ""), str(model.coefficients)]
        if model.fit is None or model.objective is None:
            rows.append((*cells, f"refused: {model.refused}"))
            continue
        held = "" if model.held_out is None else f"{model.held_out:.2%}"
        test = "" if model.p_value is None else f"{model.p_value:.3f}"
        rows.append((*cells, f"{model.objective:.5g}", test, held))
    plain = [
        {
            "name": model.name,
            "coefficients": model.coefficients,
            "objective": model.objective,
            "p_value": model.p_value,
            "held_out": model.held_out,
            "refused": model.refused,
        }
        for model in joint.models
    ]
    tested = any(model.p_value is not None for model in joint.models)
    lead = (
        f"Each way of sharing is tested against {SEPARATE}: p is how often {SEPARATE} gain as much on data that follow"
        f" the joint law (bootstrap of the likelihood ratio). The first with p of at least {LEVEL:g} is chosen."
        if tested
        else f"The runs do not determine {SEPARATE}, so no way of sharing can be tested."
    )
    columns = ("Shared by the groups", "Coefficients", "Objective", "p", "Error held out")
    return Section("What the groups share", {"models": plain}, lead, columns, tuple(rows))


def _coefficients(joint: Joint) -> Section:
    fitted, draws = joint.fit, joint.draws
    spread = intervals(draws.coefficients)
    rows = tuple(
        (name, figure(value, *spread[name]["80"]), span(value, spread[name]["80"]), span(value, spread[name]["95"]))
        for name, value in fitted.coefficients.items()
    )
    notes = (*fitted.notes, *draws.notes)
    values = {"coefficients": fitted.coefficients, "intervals": spread, "scatter": fitted.scatter, "notes": list(notes)}
    lead = (
        f"{len(joint.runs)} runs of {len(joint.groups)} groups, {joint.chosen.name}. Intervals: {len(draws):,}"
        f" resamplings within each group. Runs scatter about the law by {fitted.scatter:.2%}."
    )
    return Section("Joint law", values, lead, ("Coefficient", "Fit", "80%", "95%"), rows, warnings=notes)


def describe_mixtures(mixtures: Sequence[Mixture]) -> list[Section]:
    """Describes the best share of image tokens at each compute."""
    rows, warnings = [], []
    for each in mixtures:
        low, high = each.share[1]
        losses = ", ".join(f"{name} {value:.4f}" for name, value in each.losses.items())
        rows.append((f"{each.flops:.3g}", f"{each.share[0]:.2f}", f"{low:.2f} to {high:.2f}", large(each.n), losses))
        if each.at_edge:
            warnings.append(
                f"at {each.flops:.3g} FLOPs the best share is the smallest or largest of the runs: the best may lie"
                " beyond it"
            )
    weights = ", ".join(f"{weight:g} x {name}" for name, weight in mixtures[0].weights.items())
    given = [
        (f"{each.flops:.3g}", *(f"{lost:.2%}" for lost in each.given_up.values()))
        for each in mixtures
        if each.given_up.keys() == mixtures[0].given_up.keys()
    ]
    shares = (f"{share:.2f}" for share in mixtures[0].given_up)
    plain = [
        {
            **asdict(each),
            "curve": each.curve.tolist(),
            "given_up": {f"{share:g}": lost for share, lost in each.given_up.items()},
        }
        for each in mixtures
    ]
    return [
        Section(
            "",
            {"mixtures": plain},
            f"The share of image tokens with the lowest {weights}, at the best size for each compute.",
            ("FLOPs", "Share", "80%", "N", "Losses"),
            tuple(rows),
            warnings=tuple(warnings),
        ),
        Section(
            "Other shares",
            lead="What the weighted loss gives up at other shares, relative to the best.",
            columns=("FLOPs", *shares),
            rows=tuple(given),
        ),
    ]


def describe_rates(found: RateLaw) -> list[Section]:
    """Describes the law of a setting."""
    published = {"a": found.published.a, "b": found.published.b, "R": found.published.factor}
    rows = []
    for name, meaning in (("R", ""), ("a", "power of N"), ("b", "power of D"), ("curvature", "")):
        value, ends = found.values[name], found.intervals[name]
        label = f"{name}  ({meaning})" if meaning else name
        shown = (label, figure(value, *ends["80"]), span(value, ends["80"]), span(value, ends["95"]))
        rows.append((*shown, f"{published[name]:g}" if name in published else ""))
    far = {
        name: not found.intervals[name]["95"][0] <= published[name] <= found.intervals[name]["95"][1] for name in "ab"
    }
    differ = [f"{name} {found.values[name]:.2f} against {published[name]:g}" for name in far if far[name]]
    verdict = (
        f"It differs from {found.published.source}: {', '.join(differ)}, outside the 95% interval"
        if differ
        else f"The exponents agree with {found.published.source}, within 95%"
    )
    off = found.values["curvature"]
    lead = (
        f"{found.column} = R N^a D^b, from {found.used} of {found.runs} runs, those within a factor of 4 of the best of"
        f" their size and length. At twice or half the best {found.column} the loss is {off * 0.48045:.2%} higher. Runs"
        f" scatter by {found.scatter:.2%}."
    )
    cells = tuple(
        (
            large(cell.n),
            large(cell.d),
            f"{cell.best[0]:.3g}",
            f"{cell.best[1][0]:.3g} to {cell.best[1][1]:.3g}",
            f"{cell.published:.3g}",
            f"{cell.settings[cell.losses.argmin()]:.3g}",
        )
        for cell in found.cells
    )
    plain = {
        "loss": found.loss,
        "setting": found.column,
        "values": found.values,
        "intervals": found.intervals,
        "published": vars(found.published),
        "used": found.used,
        "runs": found.runs,
        "cells": [
            {
                **vars(cell),
                "settings": cell.settings.tolist(),
                "losses": cell.losses.tolist(),
                "best": cell.best[0],
                "interval_80": cell.best[1],
            }
            for cell in found.cells
        ],
        "notes": [verdict, *found.notes],
    }
    columns = ("Coefficient", "Fit", "80%", "95%", "Published")
    headings = ("N", "D", "Best", "80%", "Published", "Lowest loss at")
    return [
        Section("", plain, lead, columns, tuple(rows), (verdict,), warnings=found.notes),
        Section("Sizes and lengths", columns=headings, rows=cells),
    ]
