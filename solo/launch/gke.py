"""Target: Google Kubernetes Engine. A JobSet with one child Job per slice and one pod per host.

The manifest is built as data and contains no nulls. The exit status of a pod decides what follows:

    0            the pod is done
    1 to 126     except 42: the Job fails by its pod failure policy, and the JobSet fails for good
    42, 127...   the Job fails by its backoff limit of 0; the JobSet restarts and counts the restart
    an eviction  the Job fails by its pod failure policy, with a message; the JobSet restarts without counting
"""

from __future__ import annotations

from typing import Any

import yaml

from solo.config import Config, ConfigError, dump_config
from solo.launch.plan import Command, File, Plan
from solo.launch.request import Request, check
from solo.machines import Machine
from solo.statuses import INTERRUPTED

MOUNT = "/mnt/solo"
CONTAINER = "train"
JOB = "slice"
PORT = 8476
# Exit statuses of faults that a restart does not cure.
FAULTS = [code for code in range(1, 127) if code != INTERRUPTED]


def plan(request: Request) -> Plan:
    """Plan a JobSet and its config.

    Raises:
        ConfigError: GKE does not offer the machine, or an option is missing.
    """
    if request.machine.chip.gke_accelerator is None:
        raise ConfigError(f"no GKE node pools are known for {request.machine.name}; use local")
    image = request.option("image", "us-docker.pkg.dev/PROJECT/REPOSITORY/solo:TAG")
    bucket = request.option("bucket", "gs://BUCKET").removeprefix("gs://").rstrip("/")
    config = in_bucket(request.config)
    check(config, request.machine)
    manifest = File(
        f"{request.folder}/jobset.yaml",
        yaml.safe_dump_all([_config_map(request, config), job_set(request, config, image, bucket)], sort_keys=False),
    )
    kubectl = (
        "kubectl",
        *(f"--{name}={value}" for name in ("context", "namespace") if (value := request.options.get(name))),
    )
    selector = f"jobset.sigs.k8s.io/jobset-name={request.run}"
    return Plan(
        request.run,
        "gke",
        (manifest,),
        (Command((*kubectl, "apply", f"--filename={manifest.path}"), "create the JobSet and its config"),),
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
        notes=(
            "data.folder and the runs are in the bucket: prepare the data there, or upload prepared data",
            *([f"nearly the same by xpk: {_xpk(request, image)}"] if request.machine.chip.is_tpu else []),
        ),
    )


def in_bucket(config: Config) -> Config:
    """Returns the config with its folders under the bucket's mount."""
    data = config.data.model_copy(update={"folder": _mounted(config.data.folder)})
    return config.model_copy(update={"folder": _mounted(config.folder), "data": data})


def _mounted(folder: str) -> str:
    if folder.startswith(f"{MOUNT}/"):
        return folder
    if folder.startswith("/") or "://" in folder:
        raise ConfigError(
            f"{folder} does not exist on those machines: use a path inside the bucket, which they mount at {MOUNT}"
        )
    return f"{MOUNT}/{folder}"


def job_set(request: Request, config: Config, image: str, bucket: str) -> dict[str, Any]:
    """Returns the JobSet (jobset.x-k8s.io/v1alpha2) as plain data."""
    machine, queue = request.machine, request.options.get("queue")
    metadata: dict[str, Any] = {"name": request.run}
    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    if machine.chip.is_tpu:
        # A slice is a node pool, so its pods must not be spread over two.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    restart, fail = "RestartJobSetAndIgnoreMaxRestarts", "FailJobSet"
    by_policy = {"onJobFailureReasons": ["PodFailurePolicy"]}
    rules = [
        {"name": "evicted", "action": restart, **by_policy, "onJobFailureMessagePatterns": [".*DisruptionTarget.*"]},
        {"name": "fault", "action": fail, **by_policy},
    ]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": request.max_restarts, "rules": rules},
            "replicatedJobs": [
                {
                    "name": JOB,
                    "replicas": machine.slices if machine.chip.is_tpu else 1,
                    "template": {"spec": _job(request, config, image, bucket)},
                }
            ],
        },
    }


def _job(request: Request, config: Config, image: str, bucket: str) -> dict[str, Any]:
    machine = request.machine
    hosts = machine.hosts if machine.chip.is_tpu else machine.all_hosts
    exit_codes = {"containerName": CONTAINER, "operator": "In", "values": FAULTS}
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": exit_codes},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
            "spec": _pod(request, config, image, bucket),
        },
    }


def _pod(request: Request, config: Config, image: str, bucket: str) -> dict[str, Any]:
    machine = request.machine
    account = request.options.get("service_account")
    bucket_volume = {"bucketName": bucket, "mountOptions": "implicit-dirs"}
    network = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if machine.chip.is_tpu else {}
    if network:
        bucket_volume["hostNetworkPodKSA"] = "true"
    return {
        **network,
        **({"serviceAccountName": account} if account else {}),
        "restartPolicy": "Never",
        # Enough to finish a step and save; Spot nodes give less in any case.
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": _selector(machine, bool(request.options.get("spot"))),
        "tolerations": [{"key": _resource(machine), "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [_container(request, config, image)],
        "volumes": [
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "config", "configMap": {"name": f"{request.run}-config"}},
            {"name": "bucket", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket_volume}},
        ],
    }


def _container(request: Request, config: Config, image: str) -> dict[str, Any]:
    machine = request.machine
    ports = [{"containerPort": port} for port in ((PORT, 8431) if machine.chip.is_tpu else (PORT,))]
    return {
        "name": CONTAINER,
        "image": image,
        "command": ["bash", "-c", _command(request, config)],
        **({"securityContext": {"privileged": True}} if machine.chip.is_tpu else {}),
        "env": _environment(request),
        "ports": ports,
        "resources": {"limits": {_resource(machine): machine.chips_per_host}},
        "volumeMounts": [
            {"name": "memory", "mountPath": "/dev/shm"},
            {"name": "config", "mountPath": "/etc/solo"},
            {"name": "bucket", "mountPath": MOUNT},
        ],
    }


def _command(request: Request, config: Config) -> str:
    """Returns a command that counts the start in the first pod and then becomes `solo train`, which gets SIGTERM."""
    state = f"{config.run_folder}/restarts-$JOBSET_UID.json"
    count = f'python -m solo.launch.restarts --state "{state}" --run-folder "{config.run_folder}"'
    count += "".join(f" {option}" for option in request.restart_options)
    first = '[ "$JOB_INDEX/$JOB_COMPLETION_INDEX" != 0/0 ]'
    return f"{first} || {count} || exit 1\nexec solo train /etc/solo/config.yaml\n"


def _environment(request: Request) -> list[dict[str, Any]]:
    machine = request.machine

    def label(name: str) -> dict[str, Any]:
        return {"fieldRef": {"fieldPath": f"metadata.labels['jobset.sigs.k8s.io/{name}']"}}

    found: list[dict[str, Any]] = [
        {"name": "JOBSET_UID", "valueFrom": label("jobset-uid")},
        {"name": "JOB_INDEX", "valueFrom": label("job-index")},
        {"name": "JAX_COORDINATOR_PORT", "value": str(PORT)},
    ]
    if machine.chip.is_tpu:  # GKE configures the hosts of a TPU slice itself
        return found
    names = [f"{request.run}-{JOB}-0-{host}.{request.run}" for host in range(machine.all_hosts)]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    if len(names) > 1:
        found += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{names[0]}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(len(names))},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            {"name": "SOLO_HOST_NAMES", "value": ",".join(names)},
        ]
    return found


def _selector(machine: Machine, spot: bool) -> dict[str, str]:
    accelerator = machine.chip.gke_accelerator
    assert accelerator is not None
    found = (
        {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": machine.topology or "",
        }
        if machine.chip.is_tpu
        else {"cloud.google.com/gke-accelerator": accelerator}
    )
    return {**found, **({"cloud.google.com/gke-spot": "true"} if spot else {})}


def _resource(machine: Machine) -> str:
    return "google.com/tpu" if machine.chip.is_tpu else "nvidia.com/gpu"


def _config_map(request: Request, config: Config) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{request.run}-config"},
        "data": {"config.yaml": dump_config(config)},
    }


def _xpk(request: Request, image: str) -> str:
    machine = request.machine
    return (
        f"xpk workload create --cluster=CLUSTER --workload={request.run} --docker-image={image}"
        f" --tpu-type={machine.accelerator_type or machine.name} --num-slices={machine.slices}"
        f" --max-restarts={request.max_restarts} --restart-on-exit-codes={INTERRUPTED} --command='solo train CONFIG'"
    )
