"""Tables in millions, billions or PFLOPs are refused; honest tables of all kinds are not."""

import numpy as np
import pytest

from solo.config import ConfigError
from solo.scaling.laws.table import Columns, load_table
from solo.scaling.laws.units import check_units

COLUMNS = Columns(n="N", d="D", losses=("loss",))


def table(path, n=1.0, d=1.0, flops=None) -> str:
    """Writes four runs of 70M to 1B parameters in other units: sizes divided by `n`, `d` and `flops`."""
    lines = ["N,D,loss" + (",flops" if flops else "")]
    for size, tokens in ((7e7, 1.4e9), (1.6e8, 3.2e9), (4e8, 8e9), (1e9, 2e10)):
        compute = f",{6 * size * tokens / flops}" if flops else ""
        lines.append(f"{size / n},{tokens / d},3.0{compute}")
    (path / "runs.csv").write_text("\n".join(lines) + "\n")
    return str(path / "runs.csv")


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"flops": 1e15}, r"flops / \(N x D\) is 6e-15 in run 'row 1' \(so are 3 other runs\).*flops in PFLOPs\?"),
        ({"flops": 8.64e19}, r"flops / \(N x D\) is 6\.94e-20"),  # PFLOP/s-days
        ({"n": 1e3, "flops": 1.0}, r"flops / \(N x D\) is 6e\+03.*N or D in thousands\?"),
        ({"d": 1e6, "flops": 1.0}, r"flops / \(N x D\) is 6e\+06.*N or D in millions\?"),
        ({"n": 1e6}, "N is 70 in run 'row 1'.*fewer than 1,000"),
        ({"n": 1e9, "d": 1e9, "flops": 1e18}, r"N is 0\.07 "),  # FLOPs / (N D) is 6
        ({"d": 1e9}, r"D is 1\.4 in run 'row 1'"),
        ({"d": 1e6}, r"D / N is 2e-05.*Is D in thousands"),
    ],
)
def test_other_units_are_refused(tmp_path, units, message) -> None:
    path = table(tmp_path, **units)
    with pytest.raises(ConfigError, match=message) as refused:
        load_table(path, COLUMNS)
    assert str(refused.value).startswith(path)
    assert "--trust-units" in str(refused.value)
    assert len(load_table(path, COLUMNS, trust_units=True).rows) == 4


def test_one_run_in_another_unit_is_named(tmp_path) -> None:
    (tmp_path / "runs.csv").write_text("name,N,D,loss\na,7e7,1e9,3\nb,0.16,3e9,3\nc,4e8,8e9,3\n")
    with pytest.raises(ConfigError, match=r"N is 0\.16 in run 'b'; it counts"):
        load_table(tmp_path / "runs.csv", COLUMNS)


@pytest.mark.parametrize(
    ("n", "d", "flops"),
    [
        (7e7, 1.4e9, None),
        (7e10, 1.5e13, 6 * 7e10 * 1.5e13),
        (1.35e8, 2e12, None),  # 15,000 tokens per parameter
        (8.7e9, 1e8, None),  # a large model on little data
        (6.71e11, 1.48e13, 6 * 3.7e10 * 1.48e13),  # N counts all experts, a token visits a twentieth
        (1e7, 2e8, 38 * 1e7 * 2e8),  # width 256 at a context of 8,192
        (2.4e4, 1e6, 500 * 2.4e4 * 1e6),  # width 32 without its embedding, a vocabulary of 100,000
    ],
)
def test_honest_runs_are_accepted(n, d, flops) -> None:
    names = {"n": "N", "d": "D", "flops": "flops"}
    check_units("t", names, ["a"], np.array([n]), np.array([d]), None if flops is None else np.array([flops]))
