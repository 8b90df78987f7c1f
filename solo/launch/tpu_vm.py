"""Target: Cloud TPU VMs, requested as queued resources and watched from this machine.

When Spot VMs are preempted, their queued resource becomes SUSPENDED and does not recover: it must be deleted and
created again. `solo launch watch` does that, and releases the machines once the run has ended. The hosts run a start-up
script that mounts the bucket, pulls the image, and runs `solo.launch.supervisor`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from solo.config import ConfigError
from solo.files import COMMIT_MARKER
from solo.launch.environment import Secret
from solo.launch.gke import address, in_bucket
from solo.launch.options import reservation
from solo.launch.plan import Command, File, Plan, Watch, fill
from solo.launch.request import Request, check, module
from solo.machines import parse_machine

_SECRET = re.compile(
    r"(projects/(?P<project>[a-z0-9.:-]+)/secrets/)?(?P<name>[A-Za-z0-9_-]{1,255})"
    r"(/(versions/)?(?P<version>[a-z0-9][A-Za-z0-9_-]*))?"
)


def plan(request: Request) -> Plan:
    """Plan to upload the config, request the machines, and watch.

    Raises:
        ConfigError: the machine is not offered as TPU VMs, or an option is missing.
    """
    chip = request.machine.chip
    if chip.accelerator_type is None or chip.runtime_version is None:
        hint = "; use gke" if chip.gke_accelerator else ""
        raise ConfigError(f"{request.machine.name} is not offered as TPU VMs{hint}")
    if request.machine.hosts != parse_machine(request.machine.name).hosts:
        raise ConfigError(f"--hosts {request.machine.hosts}: a TPU VM {request.machine.name} has one host; use gke")
    bucket = request.bucket
    place: tuple[str, ...] = (f"--zone={request.option('zone', 'us-east5-a')}",)
    place += (f"--project={project}",) if (project := request.options.get("project")) else ()
    config = in_bucket(request.config)
    check(config, request.machine)
    secrets = [(secret.name, _version(secret, request.options.get("project"))) for secret in request.secrets]
    files = (
        request.config_file(config),
        File(f"{request.folder}/startup.sh", _startup(request, str(config.run_folder), bucket, secrets)),
    )
    there = f"gs://{bucket}/{request.folder}"
    queued = ("gcloud", "compute", "tpus", "queued-resources")
    # Particular reservations are an alpha feature of gcloud.
    alpha = any(request.options.get(name) for name in ("reservation", "provisioning_model"))
    requesting = ("gcloud", "alpha", *queued[1:]) if alpha else queued
    create = Command((*requesting, "create", request.run, *place, *_creation(request)), "request the machines")
    delete = Command((*queued, "delete", request.run, *place, "--force", "--quiet"), "release the machines")
    state = Command((*queued, "describe", request.run, *place, "--format=value(state.state)"))
    run = address(config, bucket)
    if not run.startswith("gs://"):
        raise ConfigError(f"{run}: the watch lists checkpoints by gcloud; use a folder in gs://")
    steps = ("gcloud", "storage", "ls", f"{run}/checkpoints/*/{COMMIT_MARKER}")
    ended = Command(("gcloud", "storage", "cat", f"{there}/ended"))
    watch = Watch(state, ended, Command(steps), delete, create, request.max_restarts, request.max_idle_restarts)
    first = f"{request.run}-0" if request.machine.slices > 1 else request.run
    reach = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", first, *place, "--worker=0")
    return Plan(
        request.run,
        "tpu-vm",
        files,
        (
            *(
                Command(("gcloud", "secrets", "versions", "describe", *version, "--format=value(state)"), f"is {name}")
                for name, version in secrets
            ),
            Command(("gcloud", "storage", "cp", files[0].path, f"{there}/config.yaml"), "the hosts read it"),
            Command(("gcloud", "storage", "rm", f"{there}/ended"), "left by an earlier launch", may_fail=True),
            create,
            Command(
                module("solo.cli", "launch", "watch", request.run),
                "until the run has ended; Ctrl-C only stops watching",
            ),
        ),
        status=(
            state,
            Command(ended.argv, "exit status, once it has ended", True),
            Command(steps, "checkpoints", True),
        ),
        logs=(Command((*reach, "--command=tail -n 100 /var/log/solo.log"), "process 0"),),
        stop=(delete,),
        watch=watch,
        notes=(
            "prepare the data first, in the bucket or in data.folder",
            f"the watch runs: {state}; after SUSPENDED or FAILED: {delete}; {create}",
            *(["the hosts' service account must have the role Secret Manager Secret Accessor"] if secrets else []),
        ),
        runs=(run,),
        taken=state,
    )


def _creation(request: Request) -> tuple[str, ...]:
    machine, options = request.machine, request.options
    nodes = (
        (f"--node-id={request.run}",)
        if machine.slices == 1
        else (f"--node-count={machine.slices}", f"--node-prefix={request.run}")
    )
    account, model = options.get("service_account"), options.get("provisioning_model")
    return (
        *nodes,
        f"--accelerator-type={machine.accelerator_type}",
        f"--runtime-version={machine.chip.runtime_version}",
        f"--metadata-from-file=startup-script={request.folder}/startup.sh",
        f"--labels=run={request.run}",
        *(["--spot"] if options.get("spot") else []),
        *(["--reserved"] if options.get("reserved") else []),
        *([f"--reservation={_reservation(options['reservation'])}"] if options.get("reservation") else []),
        *([f"--provisioning-model={model}"] if model else []),
        *([f"--service-account={account}"] if account else []),
        *([f"--valid-until-duration={wait}"] if (wait := options.get("wait")) else []),
    )


def _reservation(text: str) -> str:
    name, project = reservation(text)
    return name if project is None else f"projects/{project}/reservations/{name}"


def _version(secret: Secret, project: str | None) -> tuple[str, ...]:
    """Returns gcloud's arguments for a version of a secret in Secret Manager; `project` holds it by default.

    Raises:
        ConfigError: the reference is missing or not valid.
    """
    match = _SECRET.fullmatch(secret.reference or "")
    if match is None:
        raise ConfigError(
            f"--secret {secret.name}: expected {secret.name}=SECRET, {secret.name}=SECRET/VERSION, or"
            f" {secret.name}=projects/PROJECT/secrets/SECRET in Secret Manager; it is made by"
            " gcloud secrets create SECRET --data-file=FILE"
        )
    project = match["project"] or project
    return (match["version"] or "latest", f"--secret={match['name']}", *([f"--project={project}"] if project else []))


def _startup(request: Request, run_folder: str, bucket: str, secrets: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    image = request.option("image", "us-docker.pkg.dev/PROJECT/REPOSITORY/solo:TAG")
    options = (
        f"--run-folder={run_folder}",
        *request.restart_options,
        *([f"--max-seconds={request.max_seconds}"] if request.max_seconds else []),
        *(f"--secret={name}" for name, _ in secrets),
    )
    values = " ".join(f'"${name}"' for name, _ in secrets)
    filled = {
        "LAUNCH": shlex.quote(request.folder),
        "BUCKET": shlex.quote(bucket),
        "IMAGE": shlex.quote(image),
        "REGISTRY": shlex.quote(image.split("/")[0]),
        "VARIABLES": " ".join(f"--env {shlex.quote(f'{name}={value}')}" for name, value in request.environment.items()),
        "SECRETS": "\n".join(
            f"{name}=$(read_secret {shlex.join(version)}) || give_up 'cannot read the secret {name}'"
            for name, version in secrets
        ),
        "OPTIONS": shlex.join(options),
        "STDIN": f" < <(printf '%s\\0' {values})" if secrets else "",
    }
    return re.sub(r"\n{3,}", "\n\n", fill("startup.sh", filled))
