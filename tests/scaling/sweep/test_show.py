"""The table that is printed before anything starts."""

import io
from pathlib import Path

from rich.console import Console

from solo.scaling.sweep.costs import costs
from solo.scaling.sweep.folder import SweepFolder
from solo.scaling.sweep.points import expand
from solo.scaling.sweep.show import print_sweep
from tests.scaling.sweep.tiny_sweep import planned


def test_no_cell_is_truncated_on_a_narrow_terminal(tmp_path: Path) -> None:
    spec = planned(tmp_path, design={"horizons": {"steps": 100, "at": [0.5, 1.0]}}, warmup=0.1)
    points, folder, output = expand(spec), SweepFolder(spec.path), io.StringIO()
    found = costs(spec, points, [])
    print_sweep(spec, points, folder, found, found, Console(file=output, width=60, soft_wrap=True))
    lines = output.getvalue().splitlines()
    for point in points:
        (line,) = [line for line in lines if line.startswith(point.id)]
        assert line.rstrip().endswith("pending")
        assert f"{point.estimate.flops:.3g}" in line
