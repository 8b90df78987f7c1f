"""TPU VMs: commands against gcloud's documented flags, the start-up script, and the watch over scripted answers."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from solo.cli import main
from solo.config import ConfigError, load_config
from solo.launch import tpu_vm
from solo.launch.environment import Secret
from solo.launch.plan import Command, Plan, Watch
from solo.launch.request import Request
from solo.launch.watch import PATIENCE, Answer, follow
from solo.machines import parse_machine
from tests.launch.test_slurm import tools
from tests.launch.tiny_run import write_config

# cloud.google.com/sdk/gcloud/reference/..., general availability, as of November 2026; * takes any number of words.
FLAGS = {
    # Alpha: particular reservations.
    ("alpha", "compute", "tpus", "queued-resources", "create"): {
        *("--zone", "--runtime-version", "--accelerator-type", "--node-id", "--node-count", "--node-prefix"),
        *("--metadata-from-file", "--labels", "--reservation", "--provisioning-model"),
    },
    ("compute", "tpus", "queued-resources", "create"): {
        *("--zone", "--project", "--runtime-version", "--accelerator-type", "--node-id", "--node-count"),
        *("--node-prefix", "--metadata-from-file", "--labels", "--spot", "--reserved", "--service-account"),
        "--valid-until-duration",
    },
    ("secrets", "versions", "describe"): {"--secret", "--project", "--format"},
    ("compute", "tpus", "queued-resources", "delete"): {"--zone", "--project", "--force", "--quiet"},
    ("compute", "tpus", "queued-resources", "describe"): {"--zone", "--project", "--format"},
    ("compute", "tpus", "tpu-vm", "ssh"): {"--zone", "--project", "--worker", "--command"},
    ("storage", "cp"): set(),
    ("storage", "rm"): set(),
    ("storage", "ls"): set(),
    ("storage", "cat"): set(),
}
SECRETS = (Secret("HF_TOKEN", "hub"), Secret("B", "projects/there/secrets/s/versions/2"))
OPTIONS = {"image": "us-docker.pkg.dev/p/r/solo:1", "bucket": "gs://bucket", "zone": "us-east5-a"}


def plan(folder: Path, on: str = "v6e-16", slices: int = 1, secrets: tuple[Secret, ...] = (), **options) -> Plan:
    overrides = ["folder=runs", "data.folder=data", *(f"stages.{stage}.batch_rows=64" for stage in range(2))]
    config = load_config(write_config(folder), [*overrides, f"mesh.replica={slices}"])
    given = {**OPTIONS, **options}
    variables = {"A": "two words"} if secrets else {}
    return tpu_vm.plan(Request("run", (config,), parse_machine(on, slices), 20, 3, given, variables, secrets))


def create(plan: Plan) -> Command:
    (found,) = [command for command in plan.commands if "create" in command.argv]
    return found


def check_gcloud(command: Command) -> None:
    words = [word for word in command.argv[1:] if not word.startswith("-")]
    (verb,) = [verb for verb in FLAGS if tuple(words[: len(verb)]) == verb]
    used = {word.partition("=")[0] for word in command.argv if word.startswith("-")}
    assert used <= FLAGS[verb], f"{command}: no flag {used - FLAGS[verb]}"
    assert len(words) - len(verb) == (2 if verb == ("storage", "cp") else 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spot": True, "project": "p"},
        {"reserved": True, "service_account": "s", "wait": "6h"},
        {"reservation": "mine", "provisioning_model": "reservation-bound"},
    ],
)
@pytest.mark.parametrize("slices", [1, 2])
def test_gcloud_knows_every_flag(options: dict, slices: int, tmp_path: Path) -> None:
    made = plan(tmp_path, slices=slices, secrets=SECRETS, **options)
    assert made.watch is not None
    watched = [part for part in vars(made.watch).values() if isinstance(part, Command)]
    assert made.taken is not None
    commands = [*made.commands, *made.status, *made.logs, *made.stop, made.taken, *watched]
    gcloud = [command for command in commands if command.argv[0] == "gcloud"]
    assert len(gcloud) >= 10
    for command in gcloud:
        check_gcloud(command)


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_itself_parses_them(tmp_path: Path, monkeypatch) -> None:
    """Without an account, what it parses ends in a complaint about that, and nothing is asked of any cloud."""
    monkeypatch.chdir(tmp_path)
    variables = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path / "nobody"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    commands = {}
    for options in (
        {"spot": True},
        {"reserved": True, "wait": "6h"},
        {"reservation": "projects/owner/reservations/theirs", "provisioning_model": "reservation-bound"},
    ):
        made = plan(tmp_path, secrets=SECRETS, project="p", **options)
        replace(made, taken=None).execute(run=lambda command: 0)
        commands |= {command.argv: None for command in (*made.commands[:-1], *made.status, *made.logs, *made.stop)}
    for argv in commands:
        done = subprocess.run(argv, env=variables, capture_output=True, text=True)
        assert "active account" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("on", "slices", "expected"),
    [
        ("v6e-16", 1, ["--node-id=run", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e"]),
        ("v5e-16", 2, ["--node-count=2", "--node-prefix=run", "--accelerator-type=v5litepod-16"]),
        ("v5p-16", 1, ["--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5"]),
        ("v4-16", 1, ["--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base"]),
    ],
)
def test_slices_have_gclouds_names(on: str, slices: int, expected: list[str], tmp_path: Path) -> None:
    argv = create(plan(tmp_path, on, slices)).argv
    assert set(expected) <= set(argv)
    assert ("--node-id=run" in argv) == (slices == 1)


def test_a_particular_reservation_needs_gclouds_alpha_commands(tmp_path: Path) -> None:
    made = plan(tmp_path, reservation="projects/owner/reservations/theirs")
    argv = create(made).argv
    assert argv[:2] == ("gcloud", "alpha")
    assert "--reservation=projects/owner/reservations/theirs" in argv
    assert made.watch is not None
    assert made.watch.create.argv == argv


def test_two_hosts_of_eight_chips_are_gkes(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["folder=runs", "data.folder=data"])
    with pytest.raises(ConfigError, match="has one host; use gke"):
        tpu_vm.plan(Request("run", (config,), parse_machine("v6e-8", hosts=2), 20, 3, OPTIONS))


def test_a_deadline_is_the_supervisors(tmp_path: Path) -> None:
    (text,) = [file.text for file in plan(tmp_path, max_duration="2h").files if file.path.endswith("startup.sh")]
    assert "--max-seconds=7200" in text


def test_tpu7x_is_refused_with_a_hint_at_gke(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use gke"):
        plan(tmp_path, "tpu7x-8")


@pytest.mark.parametrize("secrets", [(), SECRETS])
def test_shellcheck_has_nothing_to_say(secrets: tuple[Secret, ...], tmp_path: Path) -> None:
    (text,) = [file.text for file in plan(tmp_path, secrets=secrets).files if file.path.endswith("startup.sh")]
    assert re.findall(r"@[A-Z]+@", text) == []
    path = tmp_path / "startup.sh"
    path.write_text(text)
    done = subprocess.run(["shellcheck", str(path)], env=tools(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_firewalls_port_is_pinned(tmp_path: Path) -> None:
    (text,) = [file.text for file in plan(tmp_path).files if file.path.endswith("startup.sh")]
    assert "--env JAX_COORDINATOR_PORT=8476" in text
    assert "--run-folder=/mnt/solo/runs/run" in text


class Cloud:
    """Answers for gcloud: a state, an end, or a checkpoint at each look, and what was asked of it."""

    def __init__(self, states: Sequence[str], steps: Sequence[int | None] = (), ended: str = ""):
        self.states, self.steps, self.ended = list(states), list(steps), ended
        self.did: list[str] = []
        self.slept: list[float] = []
        self.said: list[str] = []

    def follow(self, **limits: int) -> int:
        words = {name: Command((name,)) for name in ("state", "ended", "steps", "delete", "create")}
        watch = Watch(**words, max_restarts=limits.get("restarts", 100), max_idle_restarts=limits.get("idle", 3))
        return follow(watch, self.ask, self.slept.append, self.said.append)

    def ask(self, command: Command) -> Answer:
        (what,) = command.argv
        if what == "ended":
            return Answer(0, self.ended) if not self.states else Answer(1, "")
        if what == "steps":
            step = self.steps.pop(0) if self.steps else None
            return Answer(1, "") if step is None else Answer(0, f"gs://b/r/checkpoints/{step}/commit_success.txt")
        if what == "state":
            state = self.states.pop(0)
            return Answer(1, "") if state == "unanswered" else Answer(0, state)
        self.did.append(what)
        return Answer(0, "")


def test_a_finished_run_releases_its_machines() -> None:
    cloud = Cloud(["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE"], ended="0")
    assert cloud.follow() == 0
    assert cloud.did == ["delete"]
    assert cloud.said == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "the run has ended with 0"]


def test_a_fault_is_reported_and_not_retried() -> None:
    cloud = Cloud(["ACTIVE"], ended="2")
    assert cloud.follow() == 2
    assert cloud.did == ["delete"]


def test_preempted_machines_are_requested_again() -> None:
    cloud = Cloud(["ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE", "FAILED", "ACTIVE"], steps=[None, 10, 20], ended="0")
    assert cloud.follow() == 0
    assert cloud.did == ["delete", "create", "delete", "create", "delete"]
    assert "requesting the machines again, restart 2" in cloud.said


def test_machines_without_progress_are_given_up() -> None:
    cloud = Cloud(["SUSPENDED"] * 10, steps=[5] * 10)
    assert cloud.follow(idle=3) == 1
    assert cloud.did == ["delete", "create"] * 2 + ["delete"]
    assert "without a checkpoint after step 5" in cloud.said[-1]
    waits = [seconds for seconds in cloud.slept if seconds != 60]
    assert waits == [10, 20]


def test_the_limit_holds_even_with_progress() -> None:
    cloud = Cloud(["SUSPENDED"] * 10, steps=list(range(20)))
    assert cloud.follow(restarts=4) == 1
    assert cloud.did.count("create") == 4


def test_the_watch_ends_without_answers_and_touches_no_machine() -> None:
    cloud = Cloud(["ACTIVE", *["unanswered"] * (PATIENCE - 1), "ACTIVE", *["unanswered"] * PATIENCE])
    assert cloud.follow() == 1
    assert cloud.did == []


def test_watch_through_a_gcloud_that_is_a_script(tmp_path: Path, monkeypatch, capfd) -> None:
    """`launch tpu-vm --yes` as a user runs it: it creates, sees SUSPENDED, deletes, creates, sees the end, deletes."""
    (tmp_path / "gcloud").write_text(
        "#!/bin/bash\n"
        f'cd {tmp_path}; echo "$*" >> calls\n'
        'creates=$(grep -c " create " calls)\n'
        'case "$*" in\n'
        '  "storage cat "*) ((creates == 2)) && echo 0;;\n'
        '  *" describe "*) ((creates == 0)) || { ((creates == 1)) && echo SUSPENDED || echo ACTIVE; };;\n'
        '  "storage rm "*) exit 1;;\n'
        "esac\n"
    )
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep = lambda seconds: None\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    path = write_config(tmp_path)
    path.write_text(path.read_text().replace(str(tmp_path) + "/", ""))
    monkeypatch.chdir(tmp_path)
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    assert main(["launch", "tpu-vm", str(path), "--on", "v6e-8", *options, "--spot", "--yes"]) == 0, (
        capfd.readouterr().err
    )
    verbs = [line for line in (tmp_path / "calls").read_text().splitlines() if " create " in line or " delete " in line]
    assert [line.split()[3] for line in verbs] == ["create", "delete", "create", "delete"]
    assert verbs[0] == verbs[2]
    assert sys.executable in str(plan(tmp_path).commands[-1])


def test_the_watch_lists_checkpoints_where_the_run_is(tmp_path: Path) -> None:
    def steps(*overrides: str) -> str:
        batch = [f"stages.{number}.batch_rows=64" for number in range(2)]
        config = load_config(write_config(tmp_path), [*overrides, *batch])
        made = tpu_vm.plan(Request("run", (config,), parse_machine("v6e-16"), 20, 3, OPTIONS))
        assert made.watch is not None
        return str(made.watch.steps)

    marker = "checkpoints/*/commit_success.txt"
    assert steps("folder=runs", "data.folder=d") == f"gcloud storage ls 'gs://bucket/runs/run/{marker}'"
    assert steps("folder=gs://other/r", "data.folder=d") == f"gcloud storage ls 'gs://other/r/run/{marker}'"
    with pytest.raises(ConfigError, match="use a folder in gs://"):
        steps("folder=s3://other/r", "data.folder=d")
