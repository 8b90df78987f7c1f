"""All laws of one table, in the order of the report: each loss and group alone, groups together, mixtures, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from solo.config import ConfigError
from solo.scaling.laws.fit import FitRefusedError
from solo.scaling.laws.joint import SEPARATE, fit_joint
from solo.scaling.laws.mixture import best_mixture
from solo.scaling.laws.rates import fit_rates
from solo.scaling.laws.result import FitResult, FitSpec, analyse
from solo.scaling.laws.runs import Runs
from solo.scaling.laws.table import Table
from solo.scaling.report.chapters import Chapter, of_joint, of_law, of_mixtures, of_rates, of_refusal

_WAYS = {
    "all": "one law",
    "exponents-and-floor": "shared exponents and floor",
    "exponents": "shared exponents",
    "floor": "shared floor",
    "nothing": SEPARATE,
}


@dataclass(frozen=True)
class StudySpec:
    """What to fit.

    fit             settings of each law
    setting         `rate` or `batch`: fit the best value of a setting instead of a law of the loss
    joint           whether groups are also fitted together
    share_across    what groups share, instead of what the test says; a key of `_WAYS`
    reference       group that others are compared with
    compare_at      compute of the reference at which they are compared
    weights         loss -> weight, to find the best share of image tokens
    """

    fit: FitSpec
    setting: str | None = None
    joint: bool = False
    share_across: str | None = None
    reference: str | None = None
    compare_at: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def chapters(self, table: Table) -> int:
        """Returns the number of results that `study` yields."""
        return len(table.columns.losses) * (len(table.groups()) + self.joint) + bool(self.weights)


def parse_numbers(option: str, texts: Sequence[str]) -> dict[str, float]:
    """Parses `name=number`. Raises ConfigError if a text has another form."""
    found = {}
    for text in texts:
        name, sign, value = text.strip().partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = float("nan")
        if not (name and sign and np.isfinite(found[name]) and found[name] >= 0):
            raise ConfigError(f"{option} {text!r}: expected NAME=NUMBER, at least 0")
    return found


def study(table: Table, spec: StudySpec, note: Callable[[str], None]) -> Iterator[Chapter]:
    """Yields the results of a table one after the other. A refusal is a result.

    Raises:
        ConfigError: the rows mix several tokenizers or evaluation sets, or none has a usable loss.
        ValueError: options do not fit the table.
    """
    results: list[FitResult] = []
    for loss in table.columns.losses:
        parts: dict[str, Runs] = {}
        for group, part in table.groups():
            if spec.setting:
                yield _rates(part, spec, loss, group)
                continue
            runs, aside = part.runs(loss, spec.fit.law.variables)
            parts[group or ""] = runs
            say = _prefixed(note, f"{' · '.join(filter(None, (loss, group)))}, {len(runs):,} runs: ")
            results.append(analyse(loss, runs, spec.fit, group, aside, say))
            yield of_law(results[-1])
        if spec.joint:
            yield _joint(spec, loss, parts, _prefixed(note, f"{loss}: "))
    if spec.weights:
        note("mixtures")
        yield _mixtures(results, spec)


def _prefixed(note: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda text: note(prefix + text)


def _joint(spec: StudySpec, loss: str, parts: dict[str, Runs], note: Callable[[str], None]) -> Chapter:
    each = spec.fit
    way = _WAYS[spec.share_across] if spec.share_across else None
    try:
        return of_joint(
            fit_joint(
                loss, each.law, parts, each.objective, each.draws, each.seed, way, spec.reference, spec.compare_at, note
            )
        )
    except FitRefusedError as refusal:
        return of_refusal("joint", f"{loss} · {', '.join(parts)}", str(refusal))


def _mixtures(results: list[FitResult], spec: StudySpec) -> Chapter:
    try:
        return of_mixtures([best_mixture(results, spec.weights, flops) for flops in spec.fit.predict])
    except FitRefusedError as refusal:
        return of_refusal("mixtures", "Best share of image tokens", str(refusal))


def _rates(part: Table, spec: StudySpec, loss: str, group: str | None) -> Chapter:
    column = str(part.columns.setting)
    title = " · ".join(filter(None, (loss, group)))
    runs, aside = part.runs(loss, ("setting",))
    if not (runs.more["setting"] > 0).all():
        raise ConfigError(f"{part.path}: {column} is 0 in some runs")
    try:
        found = fit_rates(str(spec.setting), column, title, runs, runs.more["setting"], spec.fit.draws, spec.fit.seed)
    except FitRefusedError as refusal:
        return of_refusal("rates", f"{title} · best {column}", str(refusal), aside)
    return of_rates(found)
