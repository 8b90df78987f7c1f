"""The checkpoint that a run branches from. It is chosen when the branch begins and does not change afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from solo.config import BranchConfig, Config, ConfigError, load_config
from solo.files import is_complete, is_remote, resolved
from solo.training.distributed import from_first
from solo.training.newest import fault
from solo.training.reference import find_checkpoint, parse_reference
from solo.training.run_folder import RunFolder


def branch_config(reference: str) -> BranchConfig:
    """Reads the value of `--branch-from`: `RUN`, `RUN@STEP` or `RUN@best`. Raises ValueError if it is none of them."""
    if not reference.strip():  # a shell variable that is not set
        raise ValueError("--branch-from is empty; give RUN, RUN@STEP or RUN@best")
    folder, which = parse_reference(reference)
    return BranchConfig(run=str(folder), step=None if which == "latest" else which)


def with_lineage(config: Config) -> Config:
    """Returns the config of a run with the checkpoint that it branches from. All processes must call this.

    A branch that has begun keeps its checkpoint, whether the config names the checkpoint, only its run, or neither. So
    the command that began a branch also resumes it, even if the other run has newer checkpoints by then.

    Raises:
        ConfigError: there is no such run or checkpoint, or the run has begun in another way.
    """
    found = from_first(lambda: _found(config))
    return config.model_copy(update={"branch": None if found is None else BranchConfig.model_validate(found)})


def _found(config: Config) -> dict[str, int | str] | None:
    run, wanted = RunFolder(config.run_folder), config.branch
    begun, stored = _stored(run)
    if stored is not None and not begun and _is_secured(run, stored):
        begun = wanted is None or _same(stored, wanted)  # it was killed before its first checkpoint
    if begun and (wanted is None or (stored is not None and _same(stored, wanted))):
        return None if stored is None else stored.model_dump()
    if wanted is None:
        return None
    if begun:
        how = "began on its own" if stored is None else f"branched from {stored.run}@{stored.step}"
        step = "" if wanted.step is None else f"@{wanted.step}"
        raise ConfigError(
            f"{run.path} {how}, not from {wanted.run}{step}; choose another name for the new branch (name=...), or"
            " resume that run without --branch-from"
        )
    if resolved(wanted.run) == resolved(config.run_folder):
        raise ConfigError(f"{run.path} cannot branch from itself; choose another name for the branch (name=...)")
    other = RunFolder.existing(wanted.run, lines=False)
    try:
        checkpoint = find_checkpoint(other.path, "latest" if wanted.step is None else wanted.step)
    except ValueError as error:
        raise ConfigError(f"cannot branch: {error}") from None
    if damage := fault(checkpoint):
        raise ConfigError(f"cannot branch: checkpoint {checkpoint} is damaged: {damage}")
    return {"run": wanted.run, "step": int(checkpoint.name)}


def _stored(run: RunFolder) -> tuple[bool, BranchConfig | None]:
    """Returns whether a run has trained a step, and its lineage."""
    try:
        run = RunFolder.existing(run.path)
    except ConfigError:
        return False, None
    try:
        stored = load_config(run.config_file).branch
    except ConfigError:
        stored = None  # `RunFolder.open` says what is wrong with it
    return run.has_begun(), stored


def _same(stored: BranchConfig, wanted: BranchConfig) -> bool:
    return resolved(stored.run) == resolved(wanted.run) and wanted.step in (None, "best", stored.step)


def secure(config: Config, run: RunFolder) -> None:
    """Links the checkpoint that a run branches from into its folder, so that the other run may remove it.

    Called by process 0. `release` removes the link once the branch has its own checkpoint. In a bucket nothing is
    linked: the checkpoint is read in place.

    Raises:
        ConfigError: the checkpoint is gone.
    """
    assert config.branch is not None
    source, link = _checkpoint(config.branch), _link(run, config.branch)
    if is_remote(run.path) or is_remote(source) or is_complete(link):
        return
    release(run)  # of an attempt to branch from elsewhere
    # A partial copy has a name that no checkpoint can have.
    partial = link.with_name(f".{link.name}")
    try:
        link_folder(source, partial)
    except FileNotFoundError:
        raise ConfigError(
            f"cannot branch: checkpoint {source} was removed, as newer ones were saved; branch from a newer one"
        ) from None
    partial.rename(link)


def link_folder(source: Path, target: Path) -> None:
    """Copies a folder as links to its files. This is safe for checkpoints, because their files never change."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, copy_function=_link_file)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system
        shutil.copy2(source, target)


def origin(config: BranchConfig, run: RunFolder) -> Path:
    """Returns the folder of the checkpoint that a run branches from."""
    return _link(run, config) if _is_secured(run, config) else _checkpoint(config)


def _is_secured(run: RunFolder, config: BranchConfig) -> bool:
    return not is_remote(run.path) and is_complete(_link(run, config))


def release(run: RunFolder) -> None:
    """Removes the link that `secure` made."""
    if not is_remote(run.path):
        shutil.rmtree(run.path / "origin", ignore_errors=True)


def _checkpoint(config: BranchConfig) -> Path:
    return resolved(config.run) / "checkpoints" / str(config.step)


def _link(run: RunFolder, config: BranchConfig) -> Path:
    other = hashlib.sha256(str(resolved(config.run)).encode()).hexdigest()[:12]
    return run.path / "origin" / other / str(config.step)
