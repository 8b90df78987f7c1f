"""Eight processes on one machine compute the same, whichever of them is killed, and when; `tests.soak` kills longer."""

from pathlib import Path

import pytest

from tests.soak import STEPS, Kill, Soak

# Every attempt starts eight processes, which takes most of its time.
KILLS = (Kill("KILL", 5, step=8, moment="save"), Kill("TERM", 7, step=14))


@pytest.mark.slow
def test_eight_processes_survive_kills_of_any_of_them(tmp_path: Path) -> None:
    soak = Soak(tmp_path)
    assert soak.attempt("whole") == 0
    expected = soak.lines("whole")
    assert [line["step"] for line in expected if line["kind"] == "train"] == list(range(1, STEPS + 1))
    for kill in KILLS:
        assert soak.attempt("killed", kill) != 0, kill
    assert soak.attempt("killed") == 0
    assert soak.lines("killed") == expected
