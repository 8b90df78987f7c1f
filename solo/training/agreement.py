"""Before the first step, all processes of a run compare their configs, versions, devices, data and plans.

Nothing else would detect processes that start from different files, for example with another learning rate or other
prepared data: they would train to the end with inconsistent results. Programs of different shapes would hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import solo
from solo.config import Config, ConfigError, flat
from solo.data.planning.stage_plan import StagePlan
from solo.data.store.prepare import Prepared
from solo.training.distributed import among_others, exchange
from solo.training.hosts import seconds_of

# Keys whose values may differ from host to host: paths on local disks.
OF_A_HOST = ("data.cache", "data.cache_gigabytes")
# NFS keeps the attributes of a folder for up to 60 seconds.
SEEN_SECONDS = 90.0
SEEN_TIMEOUT = "SOLO_SHARED_FOLDER_SECONDS"
_ABSENT = "-"
_SHOWN = 20
# Number of first steps of a stage whose rows are compared one by one.
_SAMPLE = 4


def compare_configs(config: Config) -> None:
    """Compares the config, the versions and the devices of all processes.

    Raises:
        ConfigError: in all processes, if one of them differs; the message names hosts, keys and values.
    """
    facts: dict[str, Any] = {key: value for key, value in flat(config).items() if key not in OF_A_HOST}
    devices = jax.local_devices()
    facts |= {
        "version of solo": solo.__version__,
        "version of jax": jax.__version__,
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
        "kind of device": devices[0].device_kind,
        "devices of a process": len(devices),
    }
    _compare("config", facts)


def compare_plans(prepared: Prepared, plans: Sequence[StagePlan]) -> None:
    """Compares the prepared data and the plan of every stage in all processes; see `compare_configs`."""
    facts: dict[str, Any] = {"tokenizer": prepared.tokenizer.fingerprint}
    for plan in plans:
        where = f"stage {plan.stage.name}"
        for name in plan.stage.sources:
            found = prepared.sources[name].description
            facts[f"{where}, prepared source {name}"] = f"{found.content} ({found.fingerprint})"
        facts[f"{where}, steps"] = plan.num_steps
        facts[f"{where}, shape of a row"] = str(plan.shape)
        facts[f"{where}, first batches"] = str(plan.statistics(0, min(_SAMPLE, plan.num_steps)))
    _compare("plans", facts)


def check_shared(folder: Path) -> None:
    """Checks that all processes see a folder of process 0. Otherwise the first save would wait for them forever.

    Process 0 writes a file with a random name; the others look for it. Does nothing in a run of one process.

    Args:
        folder: the run's folder, on a file system. Network file systems show new files late, so the others look for
            $SOLO_SHARED_FOLDER_SECONDS (default 90).

    Raises:
        ConfigError: in all processes, if some of them do not see it; the message names them.
    """
    seconds = seconds_of(os.environ, SEEN_TIMEOUT, SEEN_SECONDS)
    token = folder / f".seen-by-all-{uuid.uuid4().hex}"

    def look(name: str) -> str:
        end = time.monotonic() + seconds
        while not (folder / name).is_file():
            if time.monotonic() > end:
                return socket.gethostname()
            with contextlib.suppress(OSError):
                os.listdir(folder)  # makes NFS and FUSE ask the server again
            time.sleep(0.2)
        return ""

    def verdict(answers: Mapping[int, str]) -> ConfigError | None:
        blind = [f"process {number} ({host})" for number, host in sorted(answers.items()) if host]
        if not blind:
            return None
        return ConfigError(
            f"the processes of a run share its folder, but {_names(blind)} of {len(answers) + 1} do not see"
            f" {folder.absolute()} of process 0 ({socket.gethostname()}): set `folder` to a path on a file system that"
            " all hosts mount at the same place, or to a bucket (gs://, s3://)"
        )

    first = among_others() and jax.process_index() == 0
    if first:
        token.touch()
    try:
        exchange("shared", token.name, look, verdict)
    finally:
        if first:
            token.unlink(missing_ok=True)


def _compare(topic: str, facts: Mapping[str, Any]) -> None:
    """Every process compares its facts with those of process 0. All processes receive all differences."""
    mine = {key: json.dumps(value) for key, value in facts.items()}

    def differences(text: str) -> str:
        first: Mapping[str, str] = json.loads(text)
        keys = [*first, *(key for key in mine if key not in first)]
        found = {
            key: (mine.get(key, _ABSENT), first.get(key, _ABSENT)) for key in keys if mine.get(key) != first.get(key)
        }
        return json.dumps([socket.gethostname(), found]) if found else ""

    exchange(topic, json.dumps(mine), differences, _verdict)


def _verdict(answers: Mapping[int, str]) -> ConfigError | None:
    """Returns an error that lists the differences by the processes that have them, or None if there are none."""
    who: dict[tuple[str, str, str], list[str]] = {}
    for number, answer in sorted(answers.items()):
        if answer:
            host, found = json.loads(answer)
            for key, (theirs, first) in found.items():
                who.setdefault((key, theirs, first), []).append(f"process {number} ({host})")
    if not who:
        return None
    lines = [
        f"  {key}: {first} in process 0, {theirs} in {_names(hosts)}" for (key, theirs, first), hosts in who.items()
    ]
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return ConfigError(
        "the processes of this run differ; nothing was trained:\n"
        + "\n".join([*lines[:_SHOWN], *more])
        + "\ngive all of them the same config, code and prepared data"
    )


def _names(hosts: list[str]) -> str:
    if len(hosts) <= 3:
        return ", ".join(hosts)
    return f"{', '.join(hosts[:2])} and {len(hosts) - 2} others"
