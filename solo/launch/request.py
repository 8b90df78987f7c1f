"""A launch request: a config, a machine, and limits, checked before anything is planned."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from solo.config import Config, ConfigError, dump_config
from solo.launch.environment import Secret
from solo.launch.options import bucket_name, check_options, flag, seconds
from solo.launch.plan import FOLDER, File
from solo.machines import Machine
from solo.sharding.axes import check_slots, mesh_sizes, rows_per_shard, slices_spanned

# JobSet names pods <run>-slice-<number>-<number>-<five letters>, and xpk's limit leaves room for queues.
MAX_NAME = 28


@dataclass(frozen=True)
class Request:
    """A run, and the machine to run it on.

    run          name of the launch: a DNS label
    configs      the run's config; several only for a job array
    options      the target's options: image, bucket, zone, partition, ...
    environment  environment variables of the run
    secrets      environment variables whose values are not part of the plan
    """

    run: str
    configs: tuple[Config, ...]
    machine: Machine
    max_restarts: int
    max_idle_restarts: int
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()

    def __post_init__(self) -> None:
        for name, number, least in (
            ("max_restarts", self.max_restarts, 0),
            ("max_idle_restarts", self.max_idle_restarts, 1),
        ):
            if number < least:
                raise ConfigError(f"{flag(name)} {number}: expected at least {least}")
        check_options(self.options)

    @property
    def config(self) -> Config:
        """The run's config; the first of an array."""
        return self.configs[0]

    @property
    def folder(self) -> str:
        """Folder of the launch's files."""
        return str(FOLDER / self.run)

    @property
    def restart_options(self) -> tuple[str, ...]:
        """Arguments for `solo.launch.restarts` and `solo.launch.supervisor`."""
        return (
            f"--max-restarts={self.max_restarts}",
            f"--max-idle-restarts={self.max_idle_restarts}",
        )

    def config_file(self, config: Config | None = None, name: str = "config.yaml") -> File:
        """Returns the resolved config as a file of the launch."""
        return File(f"{self.folder}/{name}", dump_config(config or self.config))

    def option(self, name: str, example: str) -> str:
        """Returns an option that the target requires. Raises ConfigError if it is missing."""
        value = self.options.get(name)
        if not value:
            raise ConfigError(f"set {flag(name)}, such as {example}")
        return str(value)

    @property
    def bucket(self) -> str:
        """The bucket that all hosts mount. Raises ConfigError if it is missing."""
        return bucket_name(self.option("bucket", "gs://BUCKET"))

    @property
    def max_seconds(self) -> int | None:
        """The longest time of an attempt, in seconds, or None."""
        text = self.options.get("max_duration")
        return None if text is None else seconds("max_duration", text)


def run_name(name: str) -> str:
    """Returns a DNS label for a run. Raises ConfigError if the name is too long for one, or has no letter or digit."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not label:
        raise ConfigError(f"--as {name!r}: expected a name with letters or digits")
    label = label if label[:1].isalpha() else f"run-{label}".rstrip("-")
    if len(label) > MAX_NAME:
        raise ConfigError(f"{label!r} has more than the {MAX_NAME} letters that clusters allow; choose one with --as")
    return label


def check(config: Config, machine: Machine) -> None:
    """Perform the checks that the run itself would perform after the machines have started.

    Raises:
        ConfigError: the mesh does not fit the machine's devices and slices, or the rows of a batch cannot be sharded
            evenly.
    """
    config.check_runnable()
    sizes = mesh_sizes(config.mesh, machine.devices)
    slices_spanned(sizes, machine.slices)
    for stage in config.stages:
        rows_per_shard(stage, sizes)
        if stage.patch_slots is not None and stage.text_slots is not None:
            check_slots(stage, stage.patch_slots, stage.text_slots, sizes)


def check_memory(config: Config, machine: Machine) -> list[str]:
    """Estimate whether the stages fit into the devices' memory. Returns warnings about doubtful ones.

    Raises:
        ConfigError: a stage cannot fit; the message names settings that would.
    """
    if machine.chip.memory is None:
        return []
    # Imported here, since it imports jax, which takes seconds.
    from solo.planning.memory_fit import check_run

    return check_run(config, machine)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Returns a command that runs a module of this repository."""
    return (sys.executable, "-m", name, *arguments)
