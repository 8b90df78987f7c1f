"""Target: this machine. Several processes with virtual CPU devices, or one process on the accelerators."""

from __future__ import annotations

import os
import shlex

from solo.config import ConfigError
from solo.launch.environment import must_be_set
from solo.launch.plan import Command, Plan, tail
from solo.launch.request import Request, module
from solo.training.run_folder import RunFolder


def plan(request: Request) -> Plan:
    """Plan a run in the foreground, under the supervisor.

    Raises:
        ConfigError: the machine has several real hosts, or a secret is not set here.
    """
    if request.machine.chip.name != "cpu" and request.machine.all_hosts > 1:
        raise ConfigError(f"{request.machine.name} has {request.machine.all_hosts} hosts, but this machine is one")
    for secret in request.secrets:
        if secret.reference is not None:
            raise ConfigError(f"--secret {secret.name}=...: local runs inherit it: set {secret.name} here")
        must_be_set(secret, os.environ)
    machine, run = request.machine, request.config.run_folder
    metrics = str(RunFolder(run).metrics_file)
    config, pid = request.config_file(), f"{request.folder}/supervisor.pid"
    several = machine.all_hosts > 1
    virtual = machine.chip.name == "cpu"
    variables = ("env", *(f"{name}={value}" for name, value in request.environment.items()))
    set_variables = variables if request.environment else ()
    supervisor = module(
        "solo.launch.supervisor",
        f"--run-folder={run}",
        *request.restart_options,
        f"--processes={machine.all_hosts}",
        *([f"--devices={machine.devices_per_host}"] if virtual else []),
        *([f"--logs={request.folder}/logs"] if several else []),
        *([f"--max-seconds={request.max_seconds}"] if request.max_seconds else []),
        f"--pid-file={pid}",
        "--",
        *module("solo.cli", "train", config.path),
    )
    # A run with several processes does not prepare its data. Preparing may take long; `stop` also ends it.
    preparing = module("solo.launch.pid_file", "run", pid, *module("solo.cli", "prepare", config.path))
    prepare = Command((*set_variables, *preparing), "prepare the data, unless it is")
    hosts, no_step = f"{shlex.quote(request.folder)}/logs/host-*.log", "no step has been completed yet"
    # The file also has lines of other kinds, some of them before the first step.
    newest = f'grep -s \'^{{"kind": "train"\' {shlex.quote(metrics)} | tail -n 1 | grep .'
    return Plan(
        request.run,
        "local",
        (config,),
        (*([prepare] if several else []), Command((*set_variables, *supervisor), "train here, in the foreground")),
        status=(
            Command(module("solo.launch.pid_file", "state", pid), "whether it runs"),
            Command(("sh", "-c", f"{newest} || echo {shlex.quote(f'launch: {no_step}')}"), "the newest step"),
        ),
        logs=(tail(hosts, 40, "no process has begun yet") if several else tail(shlex.quote(metrics), 40, no_step),),
        stop=(Command(module("solo.launch.pid_file", "stop", pid), "saves, and ends with 42"),),
        runs=(str(run),),
        taken=Command(module("solo.launch.pid_file", "holder", pid)),
    )
