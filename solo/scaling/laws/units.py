"""Refuses tables that are not in parameters, tokens and FLOPs, but in millions, billions or PFLOPs, for example."""

from __future__ import annotations

import numpy as np

from solo.config import ConfigError
from solo.scaling.laws.law import FLOPS_PER_PARAMETER_AND_TOKEN, Array

SMALLEST_SIZE = 1000.0
# FLOPs / (N D). Attention adds about context / width: 32 at a width of 256 and 8,192 tokens. A head or an encoder
# that N does not count adds more; inactive experts that N counts lower it (0.33 for 37 of 671 billion). A wrong unit is
# off by a factor of at least 1,000.
LEAST_FACTOR, MOST_FACTOR = FLOPS_PER_PARAMETER_AND_TOKEN / 100, FLOPS_PER_PARAMETER_AND_TOKEN * 100
# D / N, tokens per parameter. Published runs lie between 0.01 and 100,000.
LEAST_RATIO, MOST_RATIO = 1e-3, 1e6
TRUST = "--trust-units"
_UNITS = {3: "thousands", 6: "millions", 9: "billions", 12: "trillions"}
_FLOPS = {9: "GFLOPs", 12: "TFLOPs", 15: "PFLOPs", 18: "EFLOPs", 21: "ZFLOPs"}


def check_units(path: str, names: dict[str, str], ids: list[str], n: Array, d: Array, flops: Array | None) -> None:
    """Refuses sizes that cannot be parameters, tokens and FLOPs.

    Args:
        path: the table, for the message.
        names: names of the columns `n`, `d` and `flops`.
        ids: names of the R runs.
        n: parameters, positive, [R].
        d: tokens, positive, [R].
        flops: compute, positive, [R], or None if it was not measured.

    Raises:
        ConfigError: parameters or tokens are below 1,000, or tokens per parameter or FLOPs per parameter and token are
            implausible.
    """

    def refuse(what: str, values: Array, wrong: np.ndarray, why: str, guess: str) -> None:
        if not wrong.any():
            return
        place = int(np.argmax(wrong))
        others = f" (so are {wrong.sum() - 1:,} other runs)" if wrong.sum() > 1 else ""
        raise ConfigError(
            f"{path}: {what} is {values[place]:.3g} in run {ids[place]!r}{others}; {why}. {guess} Convert the table to"
            f" parameters, tokens and FLOPs; if its numbers are right as they are, add {TRUST}"
        )

    for kind, values, unit in (("n", n, "parameters"), ("d", d, "tokens")):
        why = f"it counts {unit}, and fewer than {SMALLEST_SIZE:,.0f} are no training run"
        refuse(names[kind], values, values < SMALLEST_SIZE, why, "Is it in millions or billions?")
    if flops is not None:
        factor = flops / (n * d)
        wrong = (factor < LEAST_FACTOR) | (factor > MOST_FACTOR)
        what = f"{names['flops']} / ({names['n']} x {names['d']})"
        why = f"training takes about 6 FLOPs per parameter and token; {LEAST_FACTOR:g} to {MOST_FACTOR:g} is accepted"
        refuse(what, factor, wrong, why, _guess(factor[wrong], names))
    ratio = d / n
    wrong = (ratio < LEAST_RATIO) | (ratio > MOST_RATIO)
    small = names["d"] if wrong.any() and ratio[wrong][0] < 1 else names["n"]
    why = f"{LEAST_RATIO:g} to {MOST_RATIO:,.0f} tokens per parameter are accepted"
    refuse(f"{names['d']} / {names['n']}", ratio, wrong, why, f"Is {small} in thousands, millions or billions?")


def _guess(factors: Array, names: dict[str, str]) -> str:
    """Returns the unit that would explain the first of the factors."""
    if not len(factors):
        return ""
    power = 3 * round(np.log10(factors[0] / FLOPS_PER_PARAMETER_AND_TOKEN) / 3)
    if -power in _FLOPS:
        return f"Is {names['flops']} in {_FLOPS[-power]}?"
    if power in _UNITS:
        return f"Is {names['n']} or {names['d']} in {_UNITS[power]}?"
    return "One of the three has another unit."
