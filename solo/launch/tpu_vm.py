"""Target: Cloud TPU VMs, requested as queued resources and watched from this machine.

A queued resource of Spot VMs that is preempted becomes SUSPENDED and does not return: it must be deleted and created
again. `solo launch watch` does that, and releases the machines once the run has ended. The hosts run a start-up script
that mounts the bucket, pulls the image, and runs `solo.launch.supervisor`.
"""

from __future__ import annotations

import shlex
from importlib import resources

from solo.config import ConfigError
from solo.files import COMMIT_MARKER
from solo.launch.gke import MOUNT, in_bucket
from solo.launch.plan import Command, File, Plan, Watch
from solo.launch.request import Request, check, module


def plan(request: Request) -> Plan:
    """Plan to upload the config, request the machines, and watch.

    Raises:
        ConfigError: the machine is not offered as TPU VMs, or an option is missing.
    """
    chip = request.machine.chip
    if chip.accelerator_type is None or chip.runtime_version is None:
        hint = "; use gke" if chip.gke_accelerator else ""
        raise ConfigError(f"{request.machine.name} is not offered as TPU VMs{hint}")
    bucket = request.option("bucket", "gs://BUCKET").removeprefix("gs://").rstrip("/")
    place: tuple[str, ...] = (f"--zone={request.option('zone', 'us-east5-a')}",)
    place += (f"--project={project}",) if (project := request.options.get("project")) else ()
    config = in_bucket(request.config)
    check(config, request.machine)
    files = (
        request.config_file(config),
        File(f"{request.folder}/startup.sh", _startup(request, str(config.run_folder), bucket)),
    )
    there = f"gs://{bucket}/{request.folder}"
    queued = ("gcloud", "compute", "tpus", "queued-resources")
    create = Command((*queued, "create", request.run, *place, *_creation(request)), "request the machines")
    delete = Command((*queued, "delete", request.run, *place, "--force", "--quiet"), "release the machines")
    state = Command((*queued, "describe", request.run, *place, "--format=value(state.state)"))
    run_folder = str(config.run_folder).removeprefix(f"{MOUNT}/")
    steps = ("gcloud", "storage", "ls", f"gs://{bucket}/{run_folder}/checkpoints/*/{COMMIT_MARKER}")
    ended = Command(("gcloud", "storage", "cat", f"{there}/ended"))
    watch = Watch(state, ended, Command(steps), delete, create, request.max_restarts, request.max_idle_restarts)
    first = f"{request.run}-0" if request.machine.slices > 1 else request.run
    reach = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", first, *place, "--worker=0")
    return Plan(
        request.run,
        "tpu-vm",
        files,
        (
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
            "data.folder and the runs are in the bucket: prepare the data there, or upload prepared data",
            f"the watch runs: {state}; after SUSPENDED or FAILED: {delete}; {create}",
        ),
    )


def _creation(request: Request) -> tuple[str, ...]:
    machine, options = request.machine, request.options
    nodes = (
        (f"--node-id={request.run}",)
        if machine.slices == 1
        else (f"--node-count={machine.slices}", f"--node-prefix={request.run}")
    )
    account = options.get("service_account")
    return (
        *nodes,
        f"--accelerator-type={machine.accelerator_type}",
        f"--runtime-version={machine.chip.runtime_version}",
        f"--metadata-from-file=startup-script={request.folder}/startup.sh",
        f"--labels=run={request.run}",
        *(["--spot"] if options.get("spot") else []),
        *(["--reserved"] if options.get("reserved") else []),
        *([f"--service-account={account}"] if account else []),
        *([f"--valid-until-duration={wait}"] if (wait := options.get("wait")) else []),
    )


def _startup(request: Request, run_folder: str, bucket: str) -> str:
    image = request.option("image", "us-docker.pkg.dev/PROJECT/REPOSITORY/solo:TAG")
    text = resources.files("solo.launch").joinpath("templates/startup.sh").read_text()
    filled = {
        "LAUNCH": request.folder,
        "BUCKET": bucket,
        "IMAGE": image,
        "REGISTRY": image.split("/")[0],
        "RUN_FOLDER": run_folder,
        "RESTARTS": shlex.join(request.restart_options),
    }
    for name, value in filled.items():
        text = text.replace(f"@{name}@", value)
    return text
