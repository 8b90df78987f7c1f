"""Formats numbers with as many digits as their intervals support."""

from __future__ import annotations

from math import floor, log10

_BIG = 1e5


def figure(value: float, low: float | None = None, high: float | None = None) -> str:
    """Formats a number with as many digits as its interval supports, or with four if there is no interval.

    The last digit shown is at the place of the first digit of the interval's half-width, or of its second digit if the
    first is 1, 2 or 3.
    """
    digits = 4
    if low is not None and high is not None and high > low and value:
        width = (high - low) / 2
        place = floor(log10(width))
        digits = min(max(floor(log10(abs(value))) - place + 1 + (width / 10.0**place < 3.5), 1), 6)
    if value == 0 or not abs(value) < float("inf"):
        return f"{value:g}"
    if abs(value) >= _BIG or abs(value) < 1e-3:
        return f"{value:.{max(digits - 1, 1)}e}".replace("e+", "e")
    decimals = max(digits - 1 - floor(log10(abs(value))), 0)
    return f"{value:.{decimals}f}"


def span(value: float, ends: tuple[float, float]) -> str:
    """Formats an interval with as many digits as its value."""
    shown = figure(value, *ends)
    decimals = len(shown.partition(".")[2])
    return " to ".join(
        figure(end, *ends) if "e" in shown or abs(end) >= _BIG else f"{end:.{decimals}f}" for end in ends
    )


def large(value: float) -> str:
    """Formats a count with its unit: 950, 1.2 M, 46 B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
