"""Target: a SLURM cluster whose nodes share this folder. One task per GPU, or one per node without GPUs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from solo.config import ConfigError
from solo.launch.environment import Secret, must_be_set
from solo.launch.plan import Command, File, Plan, fill, tail
from solo.launch.request import Request


def plan(request: Request) -> Plan:
    """Plan one batch job or a job array. Both restart themselves.

    Raises:
        ConfigError: the machine is a TPU, or the configs of an array share a run folder.
    """
    if request.machine.chip.is_tpu:
        raise ConfigError(f"SLURM has no {request.machine.name}; use gke or tpu-vm")
    folders = [str(config.run_folder) for config in request.configs]
    if len(set(folders)) < len(folders):
        raise ConfigError("the runs of an array need different names: put name=... into every line")
    array = len(request.configs) > 1
    configs = [
        request.config_file(config, f"config-{number}.yaml" if array else "config.yaml")
        for number, config in enumerate(request.configs)
    ]
    inherited = [secret.name for secret in request.secrets if secret.reference is None]
    for secret in request.secrets:
        if secret.reference is None:
            must_be_set(secret, os.environ)
    script = File(f"{request.folder}/job.sbatch", _script(request, folders, [file.path for file in configs]))
    # On the command line, because a site may set $SBATCH_EXPORT, which overrides directives.
    export = (f"--export=ALL,{','.join(inherited)}",) if inherited else ()
    name = f"solo-{request.run}"
    log = f"{request.folder}/slurm-*.log"
    return Plan(
        request.run,
        "slurm",
        (*configs, script),
        (Command(("sbatch", *export, script.path), "submit; the job restarts itself, see the script"),),
        status=(
            Command(("squeue", "--me", "--name", name, "--format", "%i %T %M %D %R"), "running and waiting jobs"),
            Command(("sacct", "--name", name, "--format", "JobID,State,ExitCode,Elapsed"), "what ended", True),
        ),
        logs=(tail(f"{shlex.quote(request.folder)}/slurm-*.log", 40, "no job has begun yet", f"the end of {log}"),),
        notes=("several tasks do not wait for data: prepare it first, with solo prepare or as docs/launch.md shows",),
        # Without `--me`, an operator would also end the jobs that other users gave this name.
        stop=(
            Command(("scancel", "--me", "--signal=TERM", "--name", name), "saves; the tasks end with 42", True),
            Command(("sleep", "60")),
            Command(("scancel", "--me", "--name", name), "for good"),
        ),
        runs=tuple(folders),
        taken=Command(("squeue", "--me", "--noheader", "--name", name, "--format", "%i")),
    )


def _settings(request: Request, ours: Mapping[str, object]) -> Iterator[str]:
    """Yields lines of the script that set variables: the launch's own, the user's, and secrets from files."""
    for name, value in {**ours, **request.environment}.items():
        if value is not None:
            yield f"export {name}={shlex.quote(str(value))}"
    for secret in request.secrets:
        if secret.reference is not None:
            yield f"{secret.name}=$(<{shlex.quote(_private_file(secret))}) || exit 1"
            yield f"export {secret.name}"


def _private_file(secret: Secret) -> str:
    """Returns the absolute path of a secret's file. Raises ConfigError if it is missing, or others can read it."""
    path = Path(secret.reference or "").expanduser().absolute()
    if not path.is_file():
        raise ConfigError(
            f"--secret {secret.name}: there is no file {path}; write {secret.name}=FILE, a file that the nodes see, or"
            f" --secret {secret.name} for a variable that is set here"
        )
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"--secret {secret.name}: other users can read {path}; run: chmod 600 {shlex.quote(str(path))}"
        )
    return str(path)


def _script(request: Request, folders: Sequence[str], configs: Sequence[str]) -> str:
    machine, options = request.machine, request.options
    cpu = machine.chip.name == "cpu"
    directives = {
        "job-name": f"solo-{request.run}",
        "nodes": machine.all_hosts,
        "ntasks-per-node": 1 if cpu else machine.chips_per_host,
        "gpus-per-node": None if cpu else machine.chips_per_host,
        "output": f"{request.folder}/slurm-%{'A_%a' if len(configs) > 1 else 'j'}.log",
        "open-mode": "append",
        # The signal is sent to the job steps; with `B:`, only the batch script would receive it.
        "signal": f"TERM@{options.get('grace_seconds') or 120}",
        "array": f"0-{len(configs) - 1}" if len(configs) > 1 else None,
        **{name: options.get(name) for name in ("partition", "account", "time", "qos", "constraint", "reservation")},
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in directives.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in options.get("sbatch") or ())]
    settings = {
        "JAX_PLATFORMS": "cpu" if cpu else None,
        "JAX_NUM_CPU_DEVICES": machine.devices_per_host if cpu else None,
    }
    filled = {
        "DIRECTIVES": "\n".join(lines),
        "SETTINGS": "\n".join(_settings(request, settings)),
        "CONFIGS": " ".join(map(shlex.quote, configs)),
        "RUN_FOLDERS": " ".join(map(shlex.quote, folders)),
        "FOLDER": shlex.quote(request.folder),
        "PYTHON": shlex.quote(sys.executable),
        "RESTARTS": shlex.join(request.restart_options),
    }
    return fill("job.sbatch", filled)
