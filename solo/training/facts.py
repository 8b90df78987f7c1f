"""Messages that a run prints once, before its first step."""

from __future__ import annotations

from pathlib import Path

import jax
from jax.sharding import Mesh

from solo.files import is_remote


def machine_text(mesh: Mesh) -> str:
    """Returns a description of a run's devices, processes and mesh."""
    kind, processes = jax.devices()[0].device_kind, jax.process_count()
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    where = f"{mesh.size} {'device' if mesh.size == 1 else 'devices'} of kind {kind}"
    many = f" in {processes} processes" if processes > 1 else ""
    left = f" ({jax.device_count() - mesh.size} others are not used)" if jax.device_count() > mesh.size else ""
    return f"runs on {where}{many}{left}" + (f"; mesh: {axes}" if axes else "")


def start_text(folder: Path, step: int, num_steps: int) -> str:
    """Returns a message with the step that a run begins with, or resumes after."""
    if step == 0:
        return f"starts at step 1 of {num_steps} in {folder}"
    if step >= num_steps:
        return f"all {num_steps} steps are done in {folder}"
    return f"resumes after step {step} of {num_steps} in {folder}"


def elsewhere(config_file: Path, run_folder: Path) -> str | None:
    """Returns a message if a config file is in the folder of a run but describes a run in another folder.

    This happens if a run's folder was moved or copied.
    """
    beside = config_file.parent
    is_run = config_file.name == "config.yaml" and any((beside / name).exists() for name in _OF_A_RUN)
    if is_remote(run_folder) or not is_run or beside.resolve() == run_folder.resolve():
        return None
    folder, name = beside.resolve().parent, beside.resolve().name
    return (
        f"{config_file} is in the folder of a run, but its keys folder and name refer to {run_folder}, which this run"
        f" uses; to continue the run next to the config instead, add folder={folder} name={name}"
    )


_OF_A_RUN = ("metrics.jsonl", "goodput.jsonl", "checkpoints")
