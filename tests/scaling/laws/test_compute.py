"""Compute given as FLOPs or as a machine and hours."""

import pytest

from solo.config import ConfigError
from solo.scaling.laws.compute import parse_compute


def test_flops_and_machines() -> None:
    assert parse_compute("1e24", 0.4) == 1e24
    # 64 chips (v5p counts cores) of 459 TFLOP/s for three days at half of their peak.
    assert parse_compute("v5p-128:72", 0.5) == pytest.approx(64 * 459e12 * 72 * 3600 * 0.5)


@pytest.mark.parametrize("text", ["", "much", "-1e20", "nan", "inf", "v5p-128:", "v5p-128:0", "cpu-2:5", "v9-4:1"])
def test_invalid_compute(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_compute(text, 0.4)


def test_an_mfu_above_one() -> None:
    with pytest.raises(ConfigError, match="--mfu 40"):
        parse_compute("v5e-256:1", 40)
