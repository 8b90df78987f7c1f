"""Where a run's time went: attempts that ended in every way, and folders without a ledger."""

import json
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from solo.cli import main
from solo.training.idle import IdleWatch
from solo.training.ledger import PARTS, Ledger, goodput


def write(folder: Path, *lines: dict | str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").touch()
    path = folder / "goodput.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def step(number: int, attempt: int, at: float, seconds: float = 1.0, **more: float) -> dict:
    return {"try": attempt, "spent": "step", "step": number, "seconds": seconds, "at": at, **more}


# Steps 1 to 4, saved at 2, killed; goes on from 2, does 3 and 4 again, is killed; starts once more from 2.
KILLED = [
    {"try": 1, "began": 100.0},
    {"try": 1, "resumed": 0},
    {"try": 1, "spent": "start-up", "seconds": 5.0, "at": 105.0},
    {"try": 1, "spent": "compile", "seconds": 3.0, "at": 108.0},
    step(1, 1, 109.0),
    step(2, 1, 110.0),
    {"try": 1, "spent": "checkpoint", "seconds": 0.5, "at": 110.5},
    step(3, 1, 111.5),
    step(4, 1, 112.75, data_wait=0.25),
    {"try": 2, "began": 120.0},
    {"try": 2, "resumed": 2},
    step(3, 2, 122.0, data_wait=1.0),
    step(4, 2, 123.0),
    {"try": 3, "began": 125.0},
]


def test_an_attempt_that_has_not_resumed_yet_has_lost_no_steps(tmp_path: Path) -> None:
    found = goodput(write(tmp_path, *KILLED))
    expected = {
        "start-up": 5.0,
        "compile": 3.0,
        "step": 4.0,
        "data wait": 1.0,
        "checkpoint": 0.5,
        "evaluation": 0.0,
        "lost to restarts": 2.25,
        "between attempts": 7.25 + 2.0,
    }
    assert found.seconds == expected
    assert tuple(expected) == PARTS
    assert found.total == 125 - 100
    assert (found.attempts, found.steps, found.state) == (3, 4, "running or killed")


def test_steps_are_lost_once_a_later_attempt_resumes_before_them(tmp_path: Path) -> None:
    found = goodput(write(tmp_path, *KILLED, {"try": 3, "resumed": 2}))
    assert (found.seconds["step"], found.seconds["data wait"], found.steps) == (2.0, 0.0, 2)
    assert found.seconds["lost to restarts"] == 2.25 + 3.0
    # An attempt that starts over, because its checkpoints are gone, loses all steps before it.
    found = goodput(write(tmp_path, *KILLED, {"try": 3, "resumed": 0}))
    assert (found.seconds["step"], found.steps) == (0.0, 0)


def test_clocks_that_disagree_do_not_reduce_the_total(tmp_path: Path) -> None:
    found = goodput(write(tmp_path, *KILLED[:9], {"try": 2, "began": 90.0}))
    assert found.seconds["between attempts"] == 0.0


def test_a_ledger_goes_on_after_a_line_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path, *KILLED[:9])
    path.write_text(path.read_text() + '{"try": 1, "spe')
    ledger = Ledger()
    ledger.open(path)
    ledger.resumed(2)
    time.sleep(0.05)
    ledger.waited(0.02)
    ledger.spent("step", 3)
    ledger.close("interrupted")
    found = goodput(path)
    assert (found.attempts, found.steps, found.broken, found.state) == (2, 3, 1, "interrupted")
    assert found.seconds["data wait"] == 0.02
    assert found.seconds["step"] == pytest.approx(2.03, abs=0.02)


def test_devices_are_idle_only_after_they_finish_their_work() -> None:
    watch = IdleWatch()
    assert watch.idle(1.0, 3.0) == 2.0  # nothing was given yet
    watch.given(jnp.ones(()))
    time.sleep(0.1)
    now = time.perf_counter()
    assert watch.idle(now - 0.05, now) == pytest.approx(0.05)
    assert 0.05 < watch.idle(now - 10, now) < 1  # since the work was done

    class Busy:
        def block_until_ready(self) -> None:
            time.sleep(0.2)

    watch.given(Busy())  # type: ignore[arg-type]
    assert watch.idle(now - 10, now) == 0.0
    watch.close()


def test_the_command_shows_shares(tmp_path: Path, capsys) -> None:
    write(tmp_path, *KILLED)
    assert main(["goodput", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "goodput 16.0%: 4 steps in 3 attempts" in shown
    assert "running or killed" in shown
    assert main(["goodput", str(tmp_path), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["goodput"] == 0.16
    assert sum(read["shares"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("lines", "message"), [([], "empty"), (["{", "[]"], "none of its 2 lines"), ([KILLED[2]], "has no readings")]
)
def test_a_ledger_without_a_reading_is_refused(tmp_path: Path, lines: list, message: str, capsys) -> None:
    write(tmp_path, *lines)
    assert main(["goodput", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["goodput", str(tmp_path)]) == 2
    assert "is not a run of solo" in capsys.readouterr().err
