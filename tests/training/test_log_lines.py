"""What a run says without a terminal, and its heartbeat."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

from solo.training import heartbeat
from solo.training.facts import elsewhere
from solo.training.heartbeat import Beating, read_heartbeat
from solo.training.log_lines import LogLines
from solo.training.observer import Observer, ProgressBar, observer_for


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def log(every: float = 30.0) -> tuple[LogLines, Clock, io.StringIO]:
    clock, stream = Clock(), io.StringIO()
    return LogLines(every, stream, clock, lambda: f"[{clock.seconds:g}]"), clock, stream


def line_of(step: int, **changes) -> dict:
    timing = {"step_seconds": 2.0, "data_wait_seconds": 0.5, "mfu": 0.25}
    figures = {"loss": 2.5, "learning_rate": 3e-4, "grad_norm": 0.8125, "applied": True, "tokens": 1000}
    return {"kind": "train", "step": step, "stage": "first", **figures, "timing": timing, **changes}


def test_activities_have_their_times_and_steps_their_figures() -> None:
    lines, clock, stream = log()
    lines.note("planning")
    clock.seconds = 0.5
    lines.note("compiling stage first")
    clock.seconds = 40.25
    lines.start(100)
    for step in range(1, 33):
        clock.seconds += 2.0
        lines.step(line_of(step), 100)
    lines.note("saving step 32")
    clock.seconds += 3.0
    lines.evaluated({"kind": "held_out", "step": 32, "task": "digits", "loss": 0.25, "timing": {"seconds": 1.0}})
    lines.step(line_of(33, timing={"step_seconds": 2.0, "data_wait_seconds": 0.5, "mfu": None}, loss=None), 33)
    lines.finish()
    rates = "tokens/s 500  MFU 25.0%  data wait 25.0%"
    figures = "stage first  loss 2.5000  lr 3.00e-04  grad norm 0.812"
    assert stream.getvalue().splitlines() == [
        "[0] planning",
        "[0.5] compiling stage first",
        "[40.25] compiling stage first: took 40 s",
        f"[42.25] step 1/100  {figures}  {rates}  left 3 min 18 s",
        f"[72.25] step 16/100  {figures}  {rates}  left 2 min 48 s",
        f"[102.25] step 31/100  {figures}  {rates}  left 2 min 18 s",
        "[104.25] saving step 32",
        "[107.25] step 32: held_out digits: loss 0.25",
        "[107.25] saving step 32: took 3.0 s",
        "[107.25] step 33/33  stage first  loss nan  lr 3.00e-04  grad norm 0.812  tokens/s 500  data wait 25.0%  done",
    ]


def test_a_step_that_was_not_applied_has_a_line_at_once() -> None:
    lines, _, stream = log()
    for step, applied in ((1, True), (2, True), (3, False)):
        lines.step(line_of(step, applied=applied), 9)
    first, third = stream.getvalue().splitlines()
    assert "step 1/9" in first
    assert "step 3/9" in third
    assert third.endswith("(update not applied)")


def test_news_of_an_activity_come_every_so_many_seconds_and_silence_is_broken() -> None:
    lines, clock, stream = log()
    for seconds in range(0, 100, 10):
        clock.seconds = seconds
        lines.note(f"preparing digits: {seconds} of 100 parts")
    clock.seconds = 119
    lines.still()
    clock.seconds = 120
    lines.still()
    lines.start(9)
    lines.step(line_of(1), 9)
    clock.seconds = 200
    lines.still()
    assert [text.partition("  ")[0] for text in stream.getvalue().splitlines()] == [
        "[0] preparing digits: 0 of 100 parts",
        "[30] preparing digits: 30 of 100 parts",
        "[60] preparing digits: 60 of 100 parts",
        "[90] preparing digits: 90 of 100 parts",
        "[120] preparing digits: for 2 min so far",
        "[120] preparing digits: took 2 min",
        "[120] step 1/9",
        "[200] step 1/9: the next one lasts 1 min 20 s so far",
    ]


def test_lines_are_plain_ascii_and_a_full_disk_does_not_stop_the_run() -> None:
    lines, _, stream = log()
    lines.say("a\x1b[31m b\nc\r\u00e9\x00")
    assert stream.getvalue() == "[0] a [31m b c \\xe9 \n"

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    full = LogLines(30.0, Full())
    full.say("nobody reads this")
    full.step(line_of(1), 2)


def test_every_line_is_written_at_once_though_the_output_is_a_pipe() -> None:
    code = (
        "import time\nfrom solo.training.observer import observer_for\nobserver_for(30.0).say('alive')\ntime.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "FORCE_COLOR": "1", "CI": "true"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b" alive\n")
        process.kill()


def test_a_terminal_has_a_bar_and_a_dumb_one_has_lines(monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(observer_for(30.0), ProgressBar)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(observer_for(30.0), LogLines)


def test_a_config_in_the_folder_of_a_moved_run_is_reported(tmp_path: Path) -> None:
    moved = tmp_path / "backup" / "mine"
    moved.mkdir(parents=True)
    config = moved / "config.yaml"
    assert elsewhere(config, tmp_path / "runs" / "mine") is None  # it is no run
    (moved / "metrics.jsonl").touch()
    said = elsewhere(config, tmp_path / "runs" / "mine")
    assert said is not None
    assert f"add folder={tmp_path / 'backup'} name=mine" in said
    assert elsewhere(config, moved / ".." / "mine") is None


def test_the_heartbeat_tells_the_last_step_and_goes_on_without_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.01)
    path, shown = tmp_path / "heartbeat.json", Observer()
    beating = Beating(path, shown)
    beating.note("compiling")
    beating.start(7)
    beating.step(line_of(3), 7)
    beating.close()
    found = read_heartbeat(path)
    assert found is not None
    assert (found.step, found.steps, found.activity) == (3, 7, "stage first")
    assert found.pid == os.getpid()
    assert found.moved <= found.at <= time.time()
    path.write_text('{"at": ')
    assert read_heartbeat(path) is None
    assert read_heartbeat(tmp_path / "none") is None
