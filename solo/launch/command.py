"""`solo launch`: its arguments and its actions. `--help` imports no heavy module."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.launch.restarts import MAX_IDLE_RESTARTS, MAX_RESTARTS
from solo.verbs.overrides import add_config

if TYPE_CHECKING:
    from solo.config import Config
    from solo.launch.plan import Plan
    from solo.launch.request import Request

HELP = "start a config on machines, and manage it"
DESCRIPTION = (
    "Launches a config on this machine, a SLURM cluster, Google Kubernetes Engine, or Cloud TPU VMs, and manages"
    " earlier launches. Without --yes it only prints what it would do."
)
TARGETS = {
    "local": "processes on this machine",
    "slurm": "a SLURM cluster that shares this folder",
    "gke": "Google Kubernetes Engine, a JobSet",
    "tpu-vm": "Cloud TPU VMs, queued resources",
}
_SECRETS = {
    "local": "NAME",
    "slurm": "NAME[=FILE]",
    "gke": "NAME=SECRET[/KEY]",
    "tpu-vm": "NAME=SECRET[/VERSION]",
}
_SECRET_HELP = {
    "local": "an environment variable of this shell that the run needs",
    "slurm": "an environment variable of this shell, or the content of a private file that the nodes can read",
    "gke": "the key of a Kubernetes secret as an environment variable; KEY is NAME unless given",
    "tpu-vm": "a secret of Secret Manager as an environment variable; read on the hosts",
}
_VERBS = {
    "status": "show what is running and what has ended",
    "logs": "show the end of the first process's output",
    "stop": "end a run permanently, after saving if possible",
    "watch": "request preempted machines again until the run has ended",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo launch`."""
    verbs = parser.add_subparsers(dest="target", metavar="TARGET|VERB", required=True)
    added = {name: _add_target(verbs, name, about) for name, about in TARGETS.items()}
    _add_slurm(added["slurm"])
    for name in ("gke", "tpu-vm"):
        _add_cloud(added[name])
    for name in ("local", "gke", "tpu-vm"):
        about = "save and permanently end an attempt after this time, such as 90m, 6h, 2d"
        _option(added[name], "--max-duration", metavar="TIME", help=about)
    _add_gke(added["gke"])
    _add_tpu_vm(added["tpu-vm"])
    for name, about in _VERBS.items():
        verb = verbs.add_parser(name, help=about, description=about)
        verb.add_argument("launch", metavar="RUN", help="name of the launch")
        if name == "stop":
            verb.add_argument("--yes", action="store_true", help="execute; without it, the plan is only printed")


def run(arguments: argparse.Namespace) -> int:
    """Plans a launch and executes it with --yes, or manages an earlier one. Returns the exit status."""
    return _launch(arguments) if arguments.target in TARGETS else _see_to(arguments)


def request(arguments: argparse.Namespace) -> Request:
    """Returns the request of a command line, checked. Raises ConfigError."""
    from solo.launch.environment import secrets, variables
    from solo.launch.request import Request, check, check_memory, run_name
    from solo.machines import parse_machine

    array = getattr(arguments, "array", None)
    lines = {"": ""} if array is None else _array(array)
    configs = tuple(_config(arguments, where, line) for where, line in lines.items())
    where = parse_machine(arguments.on, arguments.slices, arguments.hosts)
    for config in configs:
        check(config, where)
        for doubt in check_memory(config, where):
            print(f"launch: {doubt}", file=sys.stderr)
    options = {name: getattr(arguments, name) for name in arguments.target_options}
    given = variables(arguments.env, os.environ)
    return Request(
        run_name(configs[0].name if arguments.name is None else arguments.name),
        configs,
        where,
        arguments.max_restarts,
        arguments.max_idle_restarts,
        options,
        given,
        secrets(arguments.secret, given),
    )


def _launch(arguments: argparse.Namespace) -> int:
    plan_target: Callable[[Request], Plan] = import_module(f"solo.launch.{arguments.target.replace('-', '_')}").plan
    plan = plan_target(request(arguments))
    plan.check_name()
    if not arguments.yes:
        print(plan.script(), end="")
        _say_nothing_was_done()
        return 0
    return plan.execute()


def _see_to(arguments: argparse.Namespace) -> int:
    from solo.config import ConfigError
    from solo.launch.plan import load_record, run_all, show
    from solo.launch.watch import follow

    record = load_record(arguments.launch)
    if arguments.target == "watch":
        if record["watch"] is None:
            raise ConfigError(f"{arguments.launch} needs no watch: {record['target']} restarts it by itself")
        return follow(record["watch"])
    commands = record[arguments.target]
    if arguments.target == "stop" and not arguments.yes:
        print(show(commands), end="")
        _say_nothing_was_done()
        return 0
    return run_all(commands)


def _say_nothing_was_done() -> None:
    print("launch: nothing was done; --yes executes what is printed above", file=sys.stderr)


def _config(arguments: argparse.Namespace, where: str, line: str) -> Config:
    """Returns the config of one run. Raises ConfigError, which names the line of an array."""
    from solo.config import ConfigError, load_config

    try:
        return load_config(arguments.config, [*arguments.overrides, *shlex.split(line)])
    except ValueError as error:  # ConfigError, or a quotation mark that is not closed
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _array(name: str) -> dict[str, str]:
    """Returns the lines of overrides of a job array by their location. Raises ConfigError if there are none."""
    from solo.config import ConfigError

    path = Path(name)
    if not name:
        raise ConfigError("--array: expected a file, with one line of KEY=VALUE overrides per run")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--array: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--array: {path} is not UTF-8") from None
    found = {
        f"{path}, line {number}": line
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    }
    if not found:
        raise ConfigError(f"--array: {path} has no line of KEY=VALUE overrides")
    return found


def _add_target(verbs: Any, name: str, about: str) -> Any:
    added = verbs.add_parser(name, help=about, description=f"{about}. Prints a shell script; with --yes, runs it.")
    add_config(added)
    added.add_argument(
        "--on", required=True, metavar="TYPE", help="machine: v5p-128, v5e-256, v6e-16, h100-64, cpu-8, ..."
    )
    added.add_argument("--slices", type=int, default=1, metavar="N", help="number of slices of TYPE; default 1")
    added.add_argument(
        "--hosts",
        type=int,
        metavar="N",
        help="cpu-N: number of processes that share the devices; gke: hosts of v5e-8 and v6e-8",
    )
    added.add_argument("--as", dest="name", metavar="RUN", help="name of the launch; default: the config's")
    added.add_argument(
        "--max-restarts", type=int, default=MAX_RESTARTS, metavar="N", help=f"limit of restarts; default {MAX_RESTARTS}"
    )
    added.add_argument(
        "--max-idle-restarts",
        type=int,
        default=MAX_IDLE_RESTARTS,
        metavar="N",
        help=f"limit of consecutive restarts without a new checkpoint; default {MAX_IDLE_RESTARTS}",
    )
    added.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="environment variable of the run; without VALUE, its value in this shell; repeatable",
    )
    added.add_argument(
        "--secret", action="append", default=[], metavar=_SECRETS[name], help=f"{_SECRET_HELP[name]}; repeatable"
    )
    added.add_argument("--yes", action="store_true", help="execute; without it, the plan is only printed")
    added.set_defaults(target_options=())
    return added


def _option(parser: Any, flag: str, **settings: Any) -> None:
    """Adds an option that only the target reads, from `Request.options`."""
    action = parser.add_argument(flag, **settings)
    parser.set_defaults(target_options=(*parser.get_default("target_options"), action.dest))


def _add_slurm(slurm: Any) -> None:
    for name in ("partition", "account", "time", "qos", "constraint"):
        _option(slurm, f"--{name}", help="passed to sbatch")
    _option(slurm, "--grace-seconds", type=int, help="seconds between SIGTERM and the time limit; default 120")
    _option(slurm, "--sbatch", action="append", metavar="OPTION", help="adds a line `#SBATCH OPTION`; repeatable")
    _option(slurm, "--reservation", metavar="NAME", help="a reservation of the cluster")
    slurm.add_argument(
        "--array", metavar="FILE", help="a job array: one line of KEY=VALUE overrides per run, quoted as in a shell"
    )


def _add_cloud(target: Any) -> None:
    _option(target, "--image", help="container image, built from the Dockerfile")
    _option(target, "--bucket", help="gs://... bucket for runs and prepared data, mounted on every host")
    _option(target, "--service-account", help="service account of Kubernetes or Compute Engine")
    _option(target, "--spot", action="store_true", help="use Spot machines, which are cheaper but may be preempted")
    _option(
        target,
        "--reservation",
        metavar="NAME",
        help="name of a reservation; projects/OWNER/reservations/NAME if it belongs to another project",
    )


def _add_gke(gke: Any) -> None:
    _option(gke, "--context", help="kubectl context")
    _option(gke, "--namespace", help="kubectl namespace")
    _option(gke, "--queue", help="Kueue's LocalQueue")
    _option(gke, "--priority", metavar="CLASS", help="PriorityClass of the pods")
    _option(
        gke,
        "--node-selector",
        action="append",
        metavar="LABEL=VALUE[,VALUE]",
        help="only use nodes that have this label with one of the values; repeatable",
    )
    _option(gke, "--toleration", action="append", metavar="KEY[=VALUE][:EFFECT]", help="tolerate a taint; repeatable")
    _option(
        gke,
        "--placement-policy",
        metavar="NAME",
        help="placement policy of the pool; default: xpk's name for tpu7x slices of several hosts; none: no policy",
    )
    gke.set_defaults(target_options=(*gke.get_default("target_options"), "hosts"))


def _add_tpu_vm(tpu_vm: Any) -> None:
    _option(tpu_vm, "--zone", help="zone of the machines, such as us-east5-a")
    _option(tpu_vm, "--project", help="Google Cloud project; default: gcloud's current project")
    _option(tpu_vm, "--reserved", action="store_true", help="use any matching reservation")
    _option(
        tpu_vm,
        "--provisioning-model",
        metavar="MODEL",
        help="reservation-bound, for reservations made in calendar mode",
    )
    _option(tpu_vm, "--wait", help="how long to wait for machines, such as 6h")
