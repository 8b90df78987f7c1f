"""Target: Google Kubernetes Engine. A JobSet and its config, created by kubectl."""

from __future__ import annotations

from dataclasses import replace

import yaml

from solo.config import Config, ConfigError
from solo.files import is_remote
from solo.launch import job_set
from solo.launch.environment import Secret
from solo.launch.job_set import CONTAINER, MOUNT, SecretKey
from solo.launch.plan import Command, File, Plan
from solo.launch.request import Request, check
from solo.machines import Machine
from solo.statuses import INTERRUPTED


def plan(request: Request) -> Plan:
    """Plan a JobSet and its config.

    Raises:
        ConfigError: GKE does not offer the machine, or an option is missing.
    """
    if request.machine.chip.gke_accelerator is None:
        raise ConfigError(f"no GKE node pools are known for {request.machine.name}; use local")
    image = request.option("image", "us-docker.pkg.dev/PROJECT/REPOSITORY/solo:TAG")
    bucket = request.bucket if request.options.get("bucket") or not is_in_buckets(request.config) else None
    if not request.options.get("hosts"):
        request = replace(request, machine=as_node_pool(request.machine))
    config = in_bucket(request.config)
    check(config, request.machine)
    keys = {secret.name: _key(secret) for secret in request.secrets}
    objects = [job_set.config_map(request, config), job_set.job_set(request, config, image, bucket, keys)]
    manifest = File(f"{request.folder}/jobset.yaml", yaml.safe_dump_all(objects, sort_keys=False))
    kubectl = (
        "kubectl",
        *(f"--{name}={value}" for name in ("context", "namespace") if (value := request.options.get(name))),
    )
    selector = f"jobset.sigs.k8s.io/jobset-name={request.run}"
    names = sorted({key.secret for key in keys.values()})
    return Plan(
        request.run,
        "gke",
        (manifest,),
        (
            *(Command((*kubectl, "get", "secret", name, "--output=name"), "the run reads it") for name in names),
            # Unlike `apply`, `create` never changes what another launch has made.
            Command((*kubectl, "create", f"--filename={manifest.path}"), "create the JobSet and its config"),
        ),
        status=(
            Command((*kubectl, "get", "jobset", request.run)),
            Command((*kubectl, "get", "pods", f"--selector={selector}", "--output=wide")),
        ),
        logs=(
            Command(
                (
                    *(*kubectl, "logs", f"--container={CONTAINER}", "--tail=100"),
                    f"--selector={selector},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0",
                ),
                "process 0",
            ),
        ),
        stop=(Command((*kubectl, "delete", f"--filename={manifest.path}"), "every pod gets SIGTERM and saves"),),
        notes=tuple(_notes(request, image)),
        runs=(address(config, bucket),),
        taken=Command((*kubectl, "get", "jobset", request.run, "--ignore-not-found", "--output=name")),
    )


def as_node_pool(machine: Machine) -> Machine:
    """Returns the machine with the usual hosts of TPU node pools, which have at most four chips, as those of xpk.

    v5e-8 and v6e-8 also exist as one host of eight chips, which `--hosts 1` requests.
    """
    if machine.chip.is_tpu and machine.chips_per_host > machine.chip.chips_per_host:
        return replace(machine, hosts=machine.chips // machine.chip.chips_per_host)
    return machine


def is_in_buckets(config: Config) -> bool:
    """Returns whether both the run and its prepared data have bucket URLs, so that hosts need not mount a bucket."""
    return is_remote(config.folder) and is_remote(config.data.folder)


def address(config: Config, bucket: str | None) -> str:
    """Returns the URL of a run's folder, for a config of `in_bucket`."""
    folder = str(config.run_folder)
    return folder if bucket is None or is_remote(folder) else f"gs://{bucket}/{folder.removeprefix(f'{MOUNT}/')}"


def in_bucket(config: Config) -> Config:
    """Returns the config with its folders under the bucket's mount, unless they are URLs."""
    data = config.data.model_copy(update={"folder": _mounted(config.data.folder)})
    return config.model_copy(update={"folder": _mounted(config.folder), "data": data})


def _mounted(folder: str) -> str:
    if folder.startswith(f"{MOUNT}/") or is_remote(folder):
        return folder
    if folder.startswith("/"):
        raise ConfigError(
            f"{folder} does not exist on those machines: use a URL such as gs://BUCKET/runs, or a path inside the"
            f" bucket, which they mount at {MOUNT}"
        )
    return f"{MOUNT}/{folder}"


def _key(secret: Secret) -> SecretKey:
    name, slash, key = (secret.reference or "").partition("/")
    if not job_set.SECRET_NAME.fullmatch(name) or (slash and not job_set.SECRET_KEY.fullmatch(key)):
        raise ConfigError(
            f"--secret {secret.name}: expected {secret.name}=SECRET/KEY, a key of a Kubernetes secret; it is made by"
            " kubectl create secret generic SECRET --from-file=KEY=FILE"
        )
    return SecretKey(name, key or secret.name)


def _notes(request: Request, image: str) -> list[str]:
    machine = request.machine
    notes = [f"prepare the data first, in {'data.folder' if is_in_buckets(request.config) else 'the bucket'}"]
    if policy := job_set.placement_policy(request):
        notes.append(f"the node pool has the placement policy {policy}, or set --placement-policy")
    if machine.chip.is_tpu:
        notes.append(f"nearly the same by xpk: {_xpk(request, image)}")
    return notes


def _xpk(request: Request, image: str) -> str:
    machine = request.machine
    return (
        f"xpk workload create --cluster=CLUSTER --workload={request.run} --docker-image={image}"
        f" --tpu-type={machine.accelerator_type or machine.name} --num-slices={machine.slices}"
        f" --max-restarts={request.max_restarts} --restart-on-exit-codes={INTERRUPTED} --command='solo train CONFIG'"
    )
