"""Two launches of one name: neither changes the other's files, and both are told the way out."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from solo.cli import main
from solo.config import ConfigError
from solo.launch import command, local, pid_file
from solo.launch.plan import Command, File, Plan
from solo.launch.request import Request
from tests.launch.tiny_run import REPOSITORY, wait_until, write_config


def plan(text: str, run: str, taken: Command | None = None) -> Plan:
    return Plan("a-b", "local", (File("launches/a-b/config.yaml", text),), (), (), (), (), runs=(run,), taken=taken)


def request_of(words: list[str]) -> Request:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.request(parser.parse_args(words[1:]))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_another_run_of_the_same_label_is_refused() -> None:
    plan("one\n", "runs/a_b").execute()
    plan("two\n", "runs/a_b").check_name()  # the same run may be launched again
    with pytest.raises(ConfigError, match="holds the launch of runs/a_b; choose another name for this one with --as"):
        plan("three\n", "runs/a.b").check_name()


def test_a_launch_that_is_still_queued_keeps_its_files() -> None:
    plan("one\n", "runs/a_b").execute()
    with pytest.raises(ConfigError, match="solo launch stop a-b --yes"):
        plan("two\n", "runs/a_b", Command(("echo", "17"))).execute()
    assert Path("launches/a-b/config.yaml").read_text() == "one\n"
    assert plan("two\n", "runs/a_b", Command(("true",))).execute() == 0
    assert Path("launches/a-b/config.yaml").read_text() == "two\n"


@pytest.mark.parametrize(("program", "status", "text"), [("echo", 2, "one\n"), ("true", 0, "two\n")])
def test_the_printed_script_refuses_alike(program: str, status: int, text: str) -> None:
    plan("one\n", "runs/a_b").execute()
    script = plan("two\n", "runs/a_b", Command((program, "17"))).script()
    done = subprocess.run(["bash", "-s"], input=script, capture_output=True, text=True)
    assert done.returncode == status
    assert ("choose another name with --as" in done.stderr) == (status == 2)
    assert Path("launches/a-b/config.yaml").read_text() == text


def test_two_configs_that_make_one_label(tmp_path: Path, capsys) -> None:
    config = str(write_config(tmp_path))
    bin = tmp_path / "bin"
    bin.mkdir()
    for program in ("sbatch", "squeue"):
        (bin / program).write_text("#!/bin/sh\n")
        (bin / program).chmod(0o755)
    os.environ["PATH"] = f"{bin}:{os.environ['PATH']}"
    try:
        words = ["launch", "slurm", config, "--on", "cpu-8"]
        assert main([*words, "name=a_b", "--yes"]) == 0
        before = Path("launches/a-b/config.yaml").read_text()
        for yes in ([], ["--yes"]):
            assert main([*words, "name=a.b", *yes]) == 2
            assert "choose another name for this one with --as" in capsys.readouterr().err
        assert Path("launches/a-b/config.yaml").read_text() == before
        assert main([*words, "name=a.b", "--as", "other", "--yes"]) == 0
        # Queued: `squeue` prints its number.
        (bin / "squeue").write_text("#!/bin/sh\necho 17\n")
        assert main([*words, "name=a_b", "stages.0.steps=3", "--yes"]) == 2
        assert "solo launch stop a-b --yes" in capsys.readouterr().err
        assert Path("launches/a-b/config.yaml").read_text() == before
    finally:
        os.environ["PATH"] = os.environ["PATH"].removeprefix(f"{bin}:")


def test_one_supervisor_holds_a_pid_file(tmp_path: Path, capsys) -> None:
    """A second one is refused, and `stop` ends the first; a number that a killed process left stops nobody."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    supervisor = [sys.executable, "-m", "solo.launch.supervisor", "--run-folder=run", "--pid-file=pid", "--"]
    sleeping = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    first = subprocess.Popen([*supervisor, *sleeping], env=variables, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "up\n"
    second = subprocess.run([*supervisor, "true"], env=variables, capture_output=True, text=True)
    assert second.returncode == 2
    assert f"process {first.pid} on " in second.stderr
    found = pid_file.holder(Path("pid"))
    assert found is not None
    assert found.pid == first.pid
    assert pid_file.main(["state", "pid"]) == 0
    assert capsys.readouterr().out == f"launch: {found} runs it\n"
    assert pid_file.main(["stop", "pid"]) == 0
    assert first.wait(30) == 143
    assert pid_file.holder(Path("pid")) is None
    assert pid_file.main(["stop", "pid"]) == 1
    assert "nothing to stop: no process holds pid" in capsys.readouterr().err


def test_a_launch_that_prepares_holds_its_pid_file() -> None:
    """Its files stay as they are until it has trained with them, and `stop` ends it."""
    words = [sys.executable, "-m", "solo.launch.pid_file", "run", "launches/a/pid"]
    sleeping = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen([*words, *sleeping], env=variables, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "up\n"
    second = subprocess.run([*words, "true"], env=variables, capture_output=True, text=True)
    assert (second.returncode, f"process {first.pid} on " in second.stderr) == (2, True)
    assert pid_file.main(["stop", "launches/a/pid"]) == 0
    assert first.wait(30) == -signal.SIGTERM
    assert pid_file.holder(Path("launches/a/pid")) is None
    config = str(write_config(Path("launches").absolute()))
    made = local.plan(request_of(["launch", "local", config, "--on", "cpu-4", "--hosts", "2"]))
    prepare, _ = made.commands
    assert prepare.argv[1:5] == ("-m", "solo.launch.pid_file", "run", "launches/run/supervisor.pid")


def test_a_number_that_a_killed_process_left_stops_nobody(capsys) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path("pid").write_text(f"{bystander.pid} {os.uname().nodename}\n")
    assert pid_file.main(["stop", "pid"]) == 1
    assert bystander.poll() is None
    assert pid_file.main(["state", "pid"]) == 0
    assert capsys.readouterr().out == "launch: no process runs it\n"
    bystander.send_signal(signal.SIGKILL)
    bystander.wait()


def test_a_process_of_another_host_is_named_and_not_stopped(capsys) -> None:
    with pid_file.hold(Path("pid")) as held:
        assert held
        Path("pid").write_text("1 elsewhere\n")
        code = "import sys; from solo.launch.pid_file import main; sys.exit(main(['stop', 'pid']))"
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert "process 1 on elsewhere holds pid" in done.stderr


def test_a_file_that_does_not_exist_is_held_by_nobody() -> None:
    wait_until(lambda: pid_file.holder(Path("none")) is None, 1)
    assert pid_file.main(["holder", "none"]) == 0


def test_a_damaged_record_is_named(capsys) -> None:
    Path("launches/a").mkdir(parents=True)
    for text in ("", '{"run": "a"}', "[]"):
        Path("launches/a/plan.json").write_text(text)
        assert main(["launch", "status", "a"]) == 2
        assert "launches/a/plan.json is damaged; launch a again" in capsys.readouterr().err


def test_lines_of_an_array_are_quoted_as_in_a_shell(tmp_path: Path, capsys) -> None:
    Path("array.txt").write_text("  # rates\nname=a 'stages.0.mixture={digits: 0.5, topics: 0.5}'\nname=b\n")
    words = ["launch", "slurm", str(write_config(tmp_path)), "--on", "cpu-8", "--array", "array.txt"]
    first, second = request_of(words).configs
    assert first.stages[0].mixture == {"digits": 0.5, "topics": 0.5}
    assert (first.name, second.name) == ("a", "b")
    Path("array.txt").write_text("name=a\nname='b\n")
    assert main(words) == 2
    assert "array.txt, line 2: No closing quotation" in capsys.readouterr().err


def test_the_line_of_an_array_is_named(tmp_path: Path, capsys) -> None:
    Path("array.txt").write_text("# rates\nname=a\n\nname=b stages.0.setps=3\n")
    config = str(write_config(tmp_path))
    assert main(["launch", "slurm", config, "--on", "cpu-8", "--array", "array.txt"]) == 2
    assert "array.txt, line 4: " in capsys.readouterr().err
