"""Parses command lines with config overrides at any position. Imports only the standard library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse_with_overrides(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line; `key.path=value` words may also follow options.

    argparse alone accepts positional words of a sub-command only before its options: it would refuse
    `solo plan run.yaml --on v5e-8 seed=1`.

    Args:
        parser: its sub-commands keep overrides in `overrides`.
        arguments: the words; None: those of the process.

    Returns:
        The parsed arguments. Ends the process with status 2 on any other word that no argument takes.
    """
    parsed, left = parser.parse_known_args(arguments)
    takes_overrides = hasattr(parsed, "overrides")
    if wrong := [word for word in left if word.startswith("-") or "=" not in word or not takes_overrides]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if left:
        parsed.overrides = [*parsed.overrides, *left]
    return parsed
