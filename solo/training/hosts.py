"""The processes of a run, and the index of this one, from the scheduler's environment.

JAX detects some of these clusters too (`jax._src.clusters`, private), but only their coordinator and counts.
`solo.training.roll_call` also needs the name of every process. This module imports nothing from JAX.

    source        environment
    explicit      JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID; optionally SOLO_HOST_NAMES=name,name,...
    SLURM         the variables that srun sets for every task of a step
    GKE TPU       TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, MEGASCALE_* for several slices: set by GKE's webhook
    TPU VM        the metadata server of Compute Engine
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from solo.config import ConfigError

# Google Cloud's firewall rule for TPU VMs lets this port through, but not JAX's default, 8482 (jax issue 35905).
TPU_PORT = 8476
METADATA_TIMEOUT = 5.0


@dataclass(frozen=True)
class Hosts:
    """The processes of a run.

    names          names of the processes, in order, for messages; processes of one host share its name
    index          index of this process
    coordinator    host:port of process 0
    local_devices  accelerators of the host that this process uses; None: all
    source         where this was read from
    """

    names: tuple[str, ...]
    index: int
    coordinator: str
    local_devices: tuple[int, ...] | None
    source: str

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files that are written once for the run."""
        return self.index == 0


def find_hosts(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> Hosts | None:
    """Returns the run's processes, or None if this process is alone.

    Args:
        environment: environment variables.
        devices: the folder of device files. The metadata server is only queried if it contains a TPU.

    Raises:
        ConfigError: the variables contradict each other, or some are missing; the message names them.
    """
    for find in (_explicit, _slurm, _gke_tpu):
        hosts = find(environment)
        if hosts is not None:
            break
    else:
        hosts = _tpu_vm(environment) if _has_tpu(devices) else None
    if hosts is None or len(hosts.names) == 1:
        return None
    if not 0 <= hosts.index < len(hosts.names):
        raise ConfigError(
            f"{hosts.source}: process {hosts.index} of {len(hosts.names)} does not exist; they count from 0"
        )
    host, _, port = hosts.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            f"{hosts.source}: the address of process 0 must be HOST:PORT, found {hosts.coordinator!r}"
            " (JAX_COORDINATOR_ADDRESS, or JAX_COORDINATOR_PORT)"
        )
    return hosts


def seconds_of(environment: Mapping[str, str], name: str, default: float) -> float:
    """Returns the seconds that a variable holds. Raises ConfigError if they are not finite and above zero."""
    text = environment.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        raise ConfigError(f"{name} must be a number of seconds above 0, found {text!r}")
    return seconds


def _explicit(environment: Mapping[str, str]) -> Hosts | None:
    needed = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    # Other tools may set the address alone.
    if not any(environment.get(name) for name in needed[1:]):
        return None
    if missing := [name for name in needed if not environment.get(name)]:
        raise ConfigError(f"set {', '.join(missing)} too, to run in several processes")
    count = _integer(environment, "JAX_NUM_PROCESSES")
    names = tuple(filter(None, environment.get("SOLO_HOST_NAMES", "").split(",")))
    if names and len(names) != count:
        raise ConfigError(f"SOLO_HOST_NAMES has {len(names)} names, JAX_NUM_PROCESSES is {count}")
    return Hosts(
        names or tuple(f"process {number}" for number in range(count)),
        _integer(environment, "JAX_PROCESS_ID"),
        environment["JAX_COORDINATOR_ADDRESS"],
        _local_devices(environment),
        "JAX_* variables",
    )


def _slurm(environment: Mapping[str, str]) -> Hosts | None:
    """Returns the tasks of a step. A batch script without srun is not a step, although it has SLURM_PROCID too."""
    if "SLURM_STEP_NODELIST" not in environment or "SLURM_PROCID" not in environment:
        return None
    nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
    tasks = expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(nodes) != len(tasks):
        raise ConfigError(
            f"SLURM_STEP_NODELIST has {len(nodes)} nodes, and SLURM_STEP_TASKS_PER_NODE has tasks of {len(tasks)}"
        )
    names = tuple(node for node, count in zip(nodes, tasks, strict=True) for _ in range(count))
    # A port for each job, chosen as JAX does.
    port = environment.get("JAX_COORDINATOR_PORT") or 61440 + _integer(environment, "SLURM_JOB_ID") % 4096
    local_devices = _local_devices(environment)
    if local_devices is None and max(tasks) > 1:
        local_devices = (_integer(environment, "SLURM_LOCALID"),)
    return Hosts(names, _integer(environment, "SLURM_PROCID"), f"{nodes[0]}:{port}", local_devices, "SLURM")


def _gke_tpu(environment: Mapping[str, str]) -> Hosts | None:
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if not workers or "TPU_WORKER_ID" not in environment:
        return None
    return _slices(workers.split(","), _integer(environment, "TPU_WORKER_ID"), environment, environment, "GKE")


def _tpu_vm(environment: Mapping[str, str]) -> Hosts | None:
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    worker = _metadata(server, "agent-worker-number")
    endpoints = _metadata(server, "worker-network-endpoints")
    if worker is None or endpoints is None:
        return None
    # Names, or triples that end in the address.
    workers = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
    lines = (line.split(":", 1) for line in (_metadata(server, "tpu-env") or "").splitlines() if ":" in line)
    settings = {name.strip(): value.strip().strip("'") for name, value in lines}
    numbered = {"agent-worker-number": worker}
    return _slices(workers, _integer(numbered, "agent-worker-number"), settings, environment, "TPU VM")


def _slices(
    workers: list[str], worker: int, settings: Mapping[str, str], environment: Mapping[str, str], source: str
) -> Hosts:
    """Hosts of one or several slices: slice by slice, the workers of each in order."""
    given = {name: value for name, value in settings.items() if value}
    count = _integer({"MEGASCALE_NUM_SLICES": "1", **given}, "MEGASCALE_NUM_SLICES")
    number = _integer({"MEGASCALE_SLICE_ID": "0", **given}, "MEGASCALE_SLICE_ID")
    first = settings.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    names = tuple(
        f"slice {other} worker {place}" if other != number else name.split(":")[0]
        for other in range(count)
        for place, name in enumerate(workers)
    )
    port = environment.get("JAX_COORDINATOR_PORT") or TPU_PORT
    return Hosts(names, number * len(workers) + worker, f"{first.split(':')[0]}:{port}", None, source)


def expand_nodes(text: str) -> list[str]:
    """Expands SLURM's list of nodes: `a[1-2,07],b` is a1 a2 a07 b. Raises ConfigError if it is not one."""
    found = []
    for item in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", text):
        found += _expand(item)
    if not found:
        raise ConfigError(f"not a list of SLURM nodes: {text!r}")
    return found


def _expand(item: str) -> list[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", item)
    if match is None:
        return [item]
    before, ranges, after = match.groups()
    numbers: list[str] = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or not (high or low).isdecimal():
            raise ConfigError(f"not a list of SLURM nodes: {item!r}")
        numbers += [str(number).zfill(len(low)) for number in range(int(low), int(high or low) + 1)]
    return [before + number + rest for number in numbers for rest in _expand(after)]


def expand_counts(text: str) -> list[int]:
    """Expands SLURM's tasks per node: `2(x3),1` is 2 2 2 1. Raises ConfigError if the text is malformed."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE must be like 2(x3),1, found {text!r}")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _has_tpu(devices: Path) -> bool:
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def _metadata(server: str, key: str) -> str | None:
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    # The metadata server is never behind a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=METADATA_TIMEOUT) as response:
            text: str = response.read().decode()
            return text
    except (urllib.error.URLError, TimeoutError):
        return None


def _local_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    text = environment.get("JAX_LOCAL_DEVICE_IDS")
    try:
        return tuple(int(number) for number in text.split(",")) if text else None
    except ValueError:
        raise ConfigError(f"JAX_LOCAL_DEVICE_IDS must be numbers with commas between them, found {text!r}") from None


def _integer(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        raise ConfigError(f"{name} must be an integer, found {environment.get(name)!r}") from None
