"""Four processes on one machine compute the same, whichever of them is killed, and when; `tests.soak` kills longer."""

from pathlib import Path

import pytest

from tests.soak import Kill, Soak

# Every attempt starts four processes, which takes most of its time.
KILLS = (Kill("KILL", 2, step=5, moment="save"), Kill("TERM", 3, step=9))


@pytest.mark.slow
def test_four_processes_survive_kills_of_any_of_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("solo.launch.supervisor._SHORT_GRACE", 2.0)  # the others wait to be ended
    soak = Soak(tmp_path, processes=4, stages=1, stage_steps=24)
    assert soak.attempt("whole") == 0
    expected = soak.lines("whole")
    assert [line["step"] for line in expected if line["kind"] == "train"] == list(range(1, soak.steps + 1))
    for kill in KILLS:
        assert soak.attempt("killed", kill) != 0, kill
    assert soak.attempt("killed") == 0
    assert soak.lines("killed") == expected
