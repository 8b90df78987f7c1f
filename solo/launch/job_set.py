"""The JobSet of a run on Google Kubernetes Engine: one child Job per slice and one pod per host.

The manifest is built as plain data and contains no nulls. The exit status of a pod determines what happens next:

    0            the pod is done
    1 to 126     except 42: the Job fails by its pod failure policy, and the JobSet fails for good
    42, 127...   the Job fails by its backoff limit of 0; the JobSet restarts and counts the restart
    an eviction  the Job fails by its pod failure policy, with a message; the JobSet restarts without counting
    a deadline   the Job is told to end and saves; the JobSet fails for good
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from solo.config import Config, ConfigError, dump_config
from solo.launch.options import label_selector, reservation, toleration
from solo.launch.request import Request
from solo.machines import Machine
from solo.statuses import INTERRUPTED

MOUNT = "/mnt/solo"
CONTAINER = "train"
JOB = "slice"
PORT = 8476
# Exit statuses of faults that a restart does not fix.
FAULTS = [code for code in range(1, 127) if code != INTERRUPTED]
SECRET_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
SECRET_KEY = re.compile(r"[A-Za-z0-9._-]+")
_GCSFUSE = "gcsfuse.csi.storage.gke.io"
_POLICY = "cloud.google.com/placement-policy-name"


class SecretKey(NamedTuple):
    """A key of a Kubernetes secret."""

    secret: str
    key: str


def placement_policy(request: Request) -> str | None:
    """Returns the placement policy of the node pool, or None. Node pools of several tpu7x hosts need one.

    The name is xpk's, unless `--placement-policy` gives another one.
    """
    machine, given = request.machine, request.options.get("placement_policy")
    if given is not None:
        return None if given == "none" else given.rpartition("/")[2]
    if machine.chip.gke_placement_policy and machine.hosts > 1:
        return f"{machine.name}-{machine.topology}-placement-policy"
    return None


def job_set(
    request: Request, config: Config, image: str, bucket: str | None, keys: Mapping[str, SecretKey]
) -> dict[str, Any]:
    """Returns the JobSet (jobset.x-k8s.io/v1alpha2) as plain data. `keys`: variable -> where its secret value is."""
    machine, queue = request.machine, request.options.get("queue")
    metadata: dict[str, Any] = {"name": request.run}
    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    if machine.chip.is_tpu:
        # A slice is a node pool, so its pods must not be spread over two.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    restart, fail = "RestartJobSetAndIgnoreMaxRestarts", "FailJobSet"
    evicted, fault, deadline = (
        {"name": name, "action": action, "onJobFailureReasons": [reason]}
        for name, action, reason in (
            ("evicted", restart, "PodFailurePolicy"),
            ("fault", fail, "PodFailurePolicy"),
            ("deadline", fail, "DeadlineExceeded"),
        )
    )
    evicted["onJobFailureMessagePatterns"] = [".*DisruptionTarget.*"]
    rules = [evicted, fault, *([deadline] if request.max_seconds else [])]
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
                    "template": {"spec": _job(request, config, image, bucket, keys)},
                }
            ],
        },
    }


def _job(
    request: Request, config: Config, image: str, bucket: str | None, keys: Mapping[str, SecretKey]
) -> dict[str, Any]:
    machine = request.machine
    hosts = machine.hosts if machine.chip.is_tpu else machine.all_hosts
    exit_codes = {"containerName": CONTAINER, "operator": "In", "values": FAULTS}
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        **({"activeDeadlineSeconds": request.max_seconds} if request.max_seconds else {}),
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": exit_codes},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            **({"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}} if bucket else {}),
            "spec": _pod(request, config, image, bucket, keys),
        },
    }


def _pod(
    request: Request, config: Config, image: str, bucket: str | None, keys: Mapping[str, SecretKey]
) -> dict[str, Any]:
    machine = request.machine
    options = request.options
    account, priority = options.get("service_account"), options.get("priority")
    bucket_volume = {"bucketName": bucket, "mountOptions": "implicit-dirs"}
    network = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if machine.chip.is_tpu else {}
    if network:
        bucket_volume["hostNetworkPodKSA"] = "true"
    return {
        **network,
        **({"serviceAccountName": account} if account else {}),
        **({"priorityClassName": priority} if priority else {}),
        "restartPolicy": "Never",
        # Enough to finish a step and save; Spot nodes give less in any case.
        "terminationGracePeriodSeconds": 120,
        **_placement(request),
        "tolerations": [
            {"key": _resource(machine), "operator": "Exists", "effect": "NoSchedule"},
            *(toleration(text) for text in options.get("toleration") or ()),
        ],
        "containers": [_container(request, config, image, keys, bucket is not None)],
        "volumes": [
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "config", "configMap": {"name": f"{request.run}-config"}},
            *([{"name": "bucket", "csi": {"driver": _GCSFUSE, "volumeAttributes": bucket_volume}}] if bucket else []),
        ],
    }


def _container(
    request: Request, config: Config, image: str, keys: Mapping[str, SecretKey], mounted: bool
) -> dict[str, Any]:
    machine = request.machine
    ports = [{"containerPort": port} for port in ((PORT, 8431) if machine.chip.is_tpu else (PORT,))]
    return {
        "name": CONTAINER,
        "image": image,
        "command": ["bash", "-c", _command(request, config)],
        **({"securityContext": {"privileged": True}} if machine.chip.is_tpu else {}),
        "env": [*_given(request, keys), *_environment(request)],
        "ports": ports,
        "resources": {"limits": {_resource(machine): machine.chips_per_host}},
        "volumeMounts": [
            {"name": "memory", "mountPath": "/dev/shm"},
            {"name": "config", "mountPath": "/etc/solo"},
            *([{"name": "bucket", "mountPath": MOUNT}] if mounted else []),
        ],
    }


def _command(request: Request, config: Config) -> str:
    """Returns a command that counts the start in the first pod and then becomes `solo train`, which gets SIGTERM."""
    state = f"{config.run_folder}/restarts-$JOBSET_UID.json"
    count = f'python -m solo.launch.restarts --state "{state}" --run-folder "{config.run_folder}"'
    count += "".join(f" {option}" for option in request.restart_options)
    first = '[ "$JOB_INDEX/$JOB_COMPLETION_INDEX" != 0/0 ]'
    return f"{first} || {count} || exit 1\nexec solo train /etc/solo/config.yaml\n"


def _given(request: Request, keys: Mapping[str, SecretKey]) -> list[dict[str, Any]]:
    """Returns the user's variables and secrets. Kubernetes would expand $(NAME) in a value; $$ stands for $."""
    return [
        *({"name": name, "value": value.replace("$", "$$")} for name, value in request.environment.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": key.secret, "key": key.key}}}
            for name, key in keys.items()
        ),
    ]


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


def _placement(request: Request) -> dict[str, Any]:
    """Returns the node selector of the pods, and their node affinity if a label may have one of several values.

    Raises:
        ConfigError: --node-selector names a label that the machine or another option decides.
    """
    machine, options = request.machine, request.options
    found = {"cloud.google.com/gke-accelerator": machine.chip.gke_accelerator or ""}
    if machine.chip.is_tpu:
        found = {
            "cloud.google.com/gke-tpu-accelerator": machine.chip.gke_accelerator or "",
            "cloud.google.com/gke-tpu-topology": machine.topology or "",
        }
    if policy := placement_policy(request):
        found[_POLICY] = policy
    if options.get("spot"):
        found["cloud.google.com/gke-spot"] = "true"
    if options.get("reservation"):
        name, project = reservation(options["reservation"])
        found["cloud.google.com/reservation-name"] = name
        if project:
            found["cloud.google.com/reservation-project"] = project
    asked = label_selector(options.get("node_selector") or ())
    if both := found.keys() & asked:
        raise ConfigError(f"--node-selector {min(both)}: --on and the other options decide it")
    found |= {key: values[0] for key, values in asked.items() if len(values) == 1}
    any_of = [
        {"key": key, "operator": "In", "values": list(values)} for key, values in asked.items() if len(values) > 1
    ]
    if not any_of:
        return {"nodeSelector": found}
    terms = {"nodeSelectorTerms": [{"matchExpressions": any_of}]}
    return {
        "nodeSelector": found,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
    }


def _resource(machine: Machine) -> str:
    return "google.com/tpu" if machine.chip.is_tpu else "nvidia.com/gpu"


def config_map(request: Request, config: Config) -> dict[str, Any]:
    """Returns the ConfigMap that holds the config."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{request.run}-config"},
        "immutable": True,
        "data": {"config.yaml": dump_config(config)},
    }
