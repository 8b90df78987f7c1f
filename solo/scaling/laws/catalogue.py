"""The laws that can be fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import hyp2f1

from solo.scaling.laws.law import Array, Derived, Factor, Law, Shape, Term


def effective_tokens(tokens: Any, unique: Any, repeats: Any) -> Array:
    """Returns how many fresh tokens `tokens` are worth if only `unique` of them are distinct.

    D' = U + U r (1 - exp(-e / r)) with e = D/U - 1 repetitions after the first epoch and r = `repeats` (Muennighoff
    et al. 2023, arXiv 2305.16264, equation 5). Their decay of excess parameters is left out, because fitting
    it takes runs far above the optimal size for the unique tokens. Below one epoch, D' = D.
    """
    tokens, unique = np.asarray(tokens, float), np.asarray(unique, float)
    once = np.minimum(tokens, unique)
    epochs = np.maximum(tokens / unique - 1.0, 0.0)
    return once * (1.0 - np.expm1(-epochs / repeats) * repeats)


def remaining_noise(tokens: Any, decay: Any, speed: Any, power: Any) -> Array:
    """Returns the share of a constant learning rate's excess loss that is left at the end of a run: 1 without decay.

    The multi-power law (Luo et al. 2025, arXiv 2503.12811) says that each drop of the rate by d eta removes
    B d eta (1 - (1 + c S)^-b) of loss, with S the sum of the rates that follow. For a linear decay to zero over the
    last `decay` of the tokens, with rates relative to the peak, what is left is the integral over x from 0 to 1 of
    (1 + K x^2)^-b with K = c decay D / 2: the hypergeometric function 2F1(b, 1/2; 3/2; -K). `speed` is c in 1/tokens.
    Their power of the rate is left out, because fitting it takes several peak rates.
    """
    decayed = np.asarray(speed) * np.asarray(decay, float) * np.asarray(tokens, float) / 2.0
    return np.asarray(hyp2f1(power, 0.5, 1.5, -decayed))


def _fresh(variables: Mapping[str, Any], shapes: Sequence[Any]) -> Array:
    return effective_tokens(variables["d"], variables.get("unique", np.inf), shapes[0])


def _worth(variables: Mapping[str, Any], shapes: Sequence[Any]) -> Array:
    return np.asarray(variables["text"], float) + shapes[0] * np.asarray(variables["images"], float)


def _noise(variables: Mapping[str, Any], shapes: Sequence[Any]) -> Array:
    return remaining_noise(variables["d"], variables["decay"], *shapes)


_SIZE = Term("A", (Factor("alpha", "n"),))
_TOKENS = Term("B", (Factor("beta", "d"),))
_FLOOR = Term("E")

CHINCHILLA = Law("chinchilla", "L = E + A/N^alpha + B/D^beta", (_SIZE, _TOKENS, _FLOOR), fewest_runs=8)
SHARED = Law(
    "shared",
    "L = E + A/N^alpha + B/D^alpha",
    (_SIZE, Term("B", (Factor("alpha", "d"),)), _FLOOR),
    fewest_runs=5,
)
POWER = Law("power", "L = E + A/C^alpha", (Term("A", (Factor("alpha", "flops"),)), _FLOOR), fewest_runs=5)
REPEATED = Law(
    "repeated",
    "L = E + A/N^alpha + B/D'^beta, D' = U + U R (1 - exp(-(D/U - 1)/R))",
    (_SIZE, Term("B", (Factor("beta", "fresh"),)), _FLOOR),
    fewest_runs=10,
    derived=Derived("fresh", ("d", "unique"), (Shape("R", (0.1, 1000.0), (3.0, 15.0, 60.0)),), _fresh),
)
# The ratio of total to active parameters multiplies the size with its own power, as the number of experts does in
# Clark et al. 2022 (arXiv 2202.01169), without their interaction.
SPARSE = Law(
    "sparse",
    "L = E + A/(N^alpha S^gamma) + B/D^beta, S = total / active parameters",
    (
        Term("A", (Factor("alpha", "n"), Factor("gamma", "ratio", signed=True, range=(-2.0, 2.0)))),
        _TOKENS,
        _FLOOR,
    ),
    fewest_runs=10,
)
TOKENS = Law(
    "tokens",
    "L = E + A/N^alpha + B/T^beta + C/I^gamma, T text and I image tokens",
    (_SIZE, Term("B", (Factor("beta", "text"),)), Term("C", (Factor("gamma", "images"),)), _FLOOR),
    fewest_runs=12,
)
# The effective data of Hernandez et al. 2021 (arXiv 2102.01293) with a constant rate of exchange.
TRANSFER = Law(
    "transfer",
    "L = E + A/N^alpha + B/(T + k I)^beta, T text and I image tokens",
    (_SIZE, Term("B", (Factor("beta", "worth"),)), _FLOOR),
    fewest_runs=10,
    derived=Derived("worth", ("text", "images"), (Shape("k", (1e-3, 1e3), (0.03, 0.3, 1.0, 3.0, 30.0)),), _worth),
)
# The exponential in the share is that of Ye et al. 2024 (arXiv 2403.16952).
SHARE = Law(
    "share",
    "L = E + F exp(-t h) + A/N^alpha + B/D^beta, h the share of image tokens",
    (
        _SIZE,
        _TOKENS,
        Term("F", (Factor("t", "share", exponential=True, signed=True, range=(-12.0, 12.0)),)),
        _FLOOR,
    ),
    fewest_runs=12,
)
SCHEDULE = Law(
    "schedule",
    "L = E + A/N^alpha + B/D^beta + G 2F1(b, 1/2; 3/2; -c f D / 2), f the decayed share of the run",
    (_SIZE, _TOKENS, Term("G", (Factor(None, "noise"),)), _FLOOR),
    fewest_runs=14,
    derived=Derived(
        "noise",
        ("d", "decay"),
        (Shape("c", (1e-2, 1e5), (3.0, 30.0, 300.0), per="d"), Shape("b", (0.05, 5.0), (0.3, 1.0))),
        _noise,
    ),
)

LAWS = {law.name: law for law in (CHINCHILLA, SHARED, POWER, REPEATED, SPARSE, TOKENS, TRANSFER, SHARE, SCHEDULE)}
