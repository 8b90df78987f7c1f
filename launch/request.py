"""What is asked for: a config, a machine, limits; checked before anything is planned."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.plan import FOLDER, File
from solo.config import Config, ConfigError, dump_config
from solo.machines import Machine
from solo.sharding.axes import mesh_sizes, rows_per_shard

# JobSet's pods are called <run>-slice-<number>-<number>-<five letters>, and xpk's limit leaves room for queues.
MAX_NAME = 28


@dataclass(frozen=True)
class Request:
    """A run, and where it shall run.

    run      name among launches: a DNS label
    configs  the run's config; several only for a job array
    options  of the target: image, bucket, zone, partition, ...
    """

    run: str
    configs: tuple[Config, ...]
    machine: Machine
    max_restarts: int
    max_idle_restarts: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The run's config, of an array the first."""
        return self.configs[0]

    @property
    def folder(self) -> str:
        """Where the launch keeps its files."""
        return str(FOLDER / self.run)

    @property
    def restart_options(self) -> tuple[str, ...]:
        """For `launch.restarts` and `launch.supervisor`."""
        return (
            f"--max-restarts={self.max_restarts}",
            f"--max-idle-restarts={self.max_idle_restarts}",
        )

    def config_file(self, config: Config | None = None, name: str = "config.yaml") -> File:
        """The resolved config as a file of the launch."""
        return File(f"{self.folder}/{name}", dump_config(config or self.config))

    def option(self, name: str, example: str) -> str:
        """An option that the target cannot do without. Raises ConfigError where it was not given."""
        value = self.options.get(name)
        if not value:
            raise ConfigError(f"give --{name.replace('_', '-')}, such as {example}")
        return str(value)


def run_name(name: str) -> str:
    """A DNS label for a run. Raises ConfigError where the name is too long for one."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"run-{label}".rstrip("-")
    if len(label) > MAX_NAME:
        raise ConfigError(f"{label!r} has more than the {MAX_NAME} letters that clusters allow; choose one with --as")
    return label


def check(config: Config, machine: Machine) -> None:
    """Refuse what the run itself would refuse after the machines were paid for.

    Raises:
        ConfigError: the mesh does not take the machine's devices, or hosts and devices cannot share a batch's rows.
    """
    config.check_runnable()
    sizes = mesh_sizes(config.mesh, machine.devices)
    for stage in config.stages:
        rows_per_shard(stage, sizes)


def check_memory(config: Config, machine: Machine) -> list[str]:
    """Count by hand whether the stages fit into the devices' memory. Returns what is doubtful.

    Raises:
        ConfigError: one cannot fit; the message names settings that would.
    """
    if machine.chip.memory is None:
        return []
    # Imported here: it takes jax, and seconds.
    from solo.planning.memory_fit import check_run

    return check_run(config, machine)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """A command that runs a module of this repository here."""
    return (sys.executable, "-m", name, *arguments)
