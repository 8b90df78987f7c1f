"""Numbers and durations as words."""

from __future__ import annotations


def short(number: float) -> str:
    """Formats a count to three digits: 950, 1.23 M, 45.6 B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{max(0, 2 - (scaled >= 9.995) - (scaled >= 99.95))}f} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Formats seconds in the two largest units that matter: 12 s, 3 min 20 s, 5 h 2 min, 2 d 3 h."""
    whole = round(seconds)
    for large, small, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {large} {rest} {small}" if rest else f"{whole // size} {large}"
    return f"{whole} s"
