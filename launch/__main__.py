"""The command line of `launch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import gke, local, slurm, tpu_vm
from launch.plan import load_record, run_all, show
from launch.request import Request, check, check_memory, run_name
from launch.restarts import MAX_IDLE_RESTARTS, MAX_RESTARTS
from launch.watch import follow
from solo.arguments import parse_with_overrides
from solo.config import ConfigError, load_config
from solo.libtpu import may_have_tpu, quiet_libtpu
from solo.machines import parse_machine

TARGETS = {"local": local.plan, "slurm": slurm.plan, "gke": gke.plan, "tpu-vm": tpu_vm.plan}
_COMMON = {"target", "config", "overrides", "on", "slices", "hosts", "name", "yes", "max_restarts", "max_idle_restarts"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan a launch and execute it with --yes, or manage an earlier one. Returns the exit status; 2: usage error."""
    if not may_have_tpu():
        quiet_libtpu()
    parsed = parse_with_overrides(_parser(), arguments)
    try:
        return _launch(parsed) if parsed.target in TARGETS else _see_to(parsed)
    except ConfigError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _launch(parsed: argparse.Namespace) -> int:
    plan = TARGETS[parsed.target](request(parsed))
    if not parsed.yes:
        print(plan.script(), end="")
        print("launch: nothing was done; --yes executes what is printed above", file=sys.stderr)
        return 0
    return plan.execute()


def request(parsed: argparse.Namespace) -> Request:
    """Returns the request of a command line, checked."""
    lines = [""]
    if getattr(parsed, "array", None):
        lines = [line for line in _read(parsed.array).splitlines() if line.strip() and not line.startswith("#")]
    configs = tuple(load_config(parsed.config, [*parsed.overrides, *line.split()]) for line in lines)
    where = parse_machine(parsed.on, parsed.slices, parsed.hosts)
    for config in configs:
        check(config, where)
        for doubt in check_memory(config, where):
            print(f"launch: {doubt}", file=sys.stderr)
    options = {name: value for name, value in vars(parsed).items() if name not in _COMMON}
    name = run_name(parsed.name or configs[0].name)
    return Request(name, configs, where, parsed.max_restarts, parsed.max_idle_restarts, options)


def _see_to(parsed: argparse.Namespace) -> int:
    record = load_record(parsed.run)
    if parsed.target == "watch":
        if record["watch"] is None:
            raise ConfigError(f"{parsed.run} needs no watch: {record['target']} restarts it by itself")
        return follow(record["watch"])
    commands = record[parsed.target]
    if parsed.target == "stop" and not parsed.yes:
        print(show(commands), end="")
        print("launch: nothing was done; --yes executes what is printed above", file=sys.stderr)
        return 0
    return run_all(commands)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Launches a config on machines. Without --yes it only prints what it would do.",
    )
    verbs = parser.add_subparsers(dest="target", metavar="VERB", required=True)
    added = {
        name: _add_target(verbs, name, help)
        for name, help in (
            ("local", "processes on this machine"),
            ("slurm", "a SLURM cluster that shares this folder"),
            ("gke", "Google Kubernetes Engine, a JobSet"),
            ("tpu-vm", "Cloud TPU VMs, queued resources"),
        )
    }
    slurm, gke, tpu_vm = (added[name] for name in ("slurm", "gke", "tpu-vm"))
    for name in ("partition", "account", "time", "qos", "constraint"):
        slurm.add_argument(f"--{name}", help="passed to sbatch")
    slurm.add_argument("--grace-seconds", type=int, help="seconds between SIGTERM and the time limit; default 120")
    slurm.add_argument("--sbatch", action="append", metavar="OPTION", help="adds a line `#SBATCH OPTION`; repeatable")
    slurm.add_argument(
        "--array", type=Path, metavar="FILE", help="a job array: one line of KEY=VALUE overrides per run"
    )
    for target in (gke, tpu_vm):
        target.add_argument("--image", help="container image, built from launch/Dockerfile")
        target.add_argument("--bucket", help="gs://..., mounted on every host; holds runs and prepared data")
        target.add_argument("--service-account", help="service account of Kubernetes or Compute Engine")
        target.add_argument("--spot", action="store_true", help="cheaper machines that may be preempted")
    gke.add_argument("--context", help="kubectl context")
    gke.add_argument("--namespace", help="kubectl namespace")
    gke.add_argument("--queue", help="Kueue's LocalQueue")
    tpu_vm.add_argument("--zone", help="such as us-east5-a")
    tpu_vm.add_argument("--project", help="Google Cloud project; default: gcloud's own")
    tpu_vm.add_argument("--reserved", action="store_true", help="use a reservation")
    tpu_vm.add_argument("--wait", help="how long to wait for machines, such as 6h")
    for name, help in (
        ("status", "show what is running and what has ended"),
        ("logs", "show the end of the first process's output"),
        ("stop", "end a run for good, after saving if possible"),
        ("watch", "request preempted machines again until the run has ended"),
    ):
        verb = verbs.add_parser(name, help=help, description=help)
        verb.add_argument("run", metavar="RUN", help="name of the launch")
        if name == "stop":
            verb.add_argument("--yes", action="store_true", help="execute; without it, the plan is only printed")
    return parser


def _add_target(verbs: Any, name: str, help: str) -> Any:
    added = verbs.add_parser(name, help=help, description=f"{help}. Prints a shell script; with --yes, runs it.")
    added.add_argument("config", metavar="CONFIG", help="a YAML file")
    added.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as `solo train` takes them")
    added.add_argument(
        "--on", required=True, metavar="TYPE", help="machine: v5p-128, v5e-256, v6e-16, h100-64, cpu-8, ..."
    )
    added.add_argument("--slices", type=int, default=1, metavar="N", help="number of slices of TYPE; default 1")
    added.add_argument("--hosts", type=int, metavar="N", help="cpu-N: processes to divide its devices among")
    added.add_argument("--as", dest="name", metavar="RUN", help="name of the launch; default: the config's")
    added.add_argument("--max-restarts", type=int, default=MAX_RESTARTS, metavar="N")
    added.add_argument(
        "--max-idle-restarts",
        type=int,
        default=MAX_IDLE_RESTARTS,
        metavar="N",
        help="restarts in a row without a new checkpoint",
    )
    added.add_argument("--yes", action="store_true", help="execute; without it, the plan is only printed")
    return added


if __name__ == "__main__":
    sys.exit(main())
