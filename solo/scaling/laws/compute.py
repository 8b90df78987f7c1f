"""Training compute, given as FLOPs or as a machine and hours."""

from __future__ import annotations

from math import isfinite

from solo.config import ConfigError
from solo.machines import parse_machine

SECONDS_PER_HOUR = 3600


def parse_compute(text: str, mfu: float) -> float:
    """Parses a compute budget: FLOPs, as in `1e24`, or a machine and hours, as in `v5p-128:72`. Returns FLOPs.

    Args:
        text: value of `--predict`.
        mfu: model FLOPs utilisation: the share of the machine's peak FLOP/s that training reaches.

    Raises:
        ConfigError: the text has neither form, or the machine's peak FLOP/s are unknown.
    """
    name, colon, hours = text.partition(":")
    try:
        value = float(hours) if colon else float(name)
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and value > 0):
        raise ConfigError(f"--predict {text!r}: expected FLOPs, as in 1e24, or a machine and hours, as in v5p-128:72")
    if not colon:
        return value
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu}: expected a share of the peak, above 0 and at most 1")
    on = parse_machine(name)
    if on.chip.peak_flops is None:
        raise ConfigError(f"--predict {text!r}: the peak of {on.name} is unknown; give FLOPs")
    return value * SECONDS_PER_HOUR * on.chip.peak_flops * on.chips * mfu
