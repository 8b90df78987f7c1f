"""Which parameters a stage trains, and with which keys: globs over parameter paths.

`layers[a:b]` in a glob of `train` stands for some of the layers, from 0, as in a Python slice. With `layer_types`, the
layers of each type are counted by themselves.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from solo.config import ConfigError, GroupConfig, StageConfig, nearest
from solo.model.declare import ParameterSpec

_LAYERS = re.compile(r"^layers\[(\d*):(\d*)\](?=/|$)")

# A key that groups may set for their parameters.
Key = Literal["learning_rate_scale", "weight_decay", "clip_norm", "optimizer"]


def trainable_paths(paths: Iterable[str], stage: StageConfig) -> list[str]:
    """Returns the paths that a stage trains, sorted. Raises ConfigError if a glob matches none."""
    paths = list(paths)
    chosen: set[str] = set()
    for pattern in stage.train:
        chosen |= set(_match(_LAYERS.sub("layers", pattern), paths, f"stage {stage.name!r}, train"))
    return sorted(chosen)


def trained_layers(specs: Mapping[str, ParameterSpec], stage: StageConfig) -> dict[str, np.ndarray]:
    """Returns, for each parameter that a stage trains in some layers only, which layers these are: bool [L].

    Raises:
        ConfigError: a glob matches no parameter, or names layers that the model does not have.
    """
    where = f"stage {stage.name!r}, train"
    found: dict[str, np.ndarray] = {}
    for pattern in stage.train:
        named = _LAYERS.match(pattern)
        for path in _match(_LAYERS.sub("layers", pattern), list(specs), where):
            if not specs[path].in_layers:
                continue
            count = specs[path].shape[0]
            first, stop = (int(named[1] or 0), int(named[2] or count)) if named else (0, count)
            if not first < stop <= count:
                raise ConfigError(f"{where}: {pattern!r} names no layers of a model that has {count}")
            found.setdefault(path, np.zeros(count, bool))[first:stop] = True
    return {path: chosen for path, chosen in found.items() if not chosen.all()}


def rate_scales(paths: Iterable[str], stage: StageConfig) -> dict[str, float]:
    """Returns the factor on the learning rate of every path.

    The last glob of `learning_rate_scale` that matches a path sets it, unless a group of the optimizer does.

    Raises:
        ConfigError: a glob matches no path.
    """
    paths = list(paths)
    globs = [
        GroupConfig(match=(pattern,), learning_rate_scale=factor)
        for pattern, factor in stage.learning_rate_scale.items()
    ]
    scales = dict.fromkeys(paths, 1.0)
    scales |= grouped(globs, paths, "learning_rate_scale", f"stage {stage.name!r}, learning_rate_scale")
    return scales | grouped(
        stage.optimizer.groups, paths, "learning_rate_scale", f"stage {stage.name!r}, optimizer.groups"
    )


def grouped(
    groups: Sequence[GroupConfig],
    paths: Iterable[str],
    key: Key,
    where: str = "optimizer.groups",
) -> dict[str, Any]:
    """Returns path -> value of a key, from the last group that matches the path and has the key.

    Raises:
        ConfigError: a glob of any group matches no path; the message begins with `where`.
    """
    return {path: getattr(groups[number], key) for path, number in group_of(groups, paths, key, where).items()}


def group_of(
    groups: Sequence[GroupConfig],
    paths: Iterable[str],
    key: Key,
    where: str = "optimizer.groups",
) -> dict[str, int]:
    """Returns path -> number of the last group that matches the path and has a key; see `grouped`."""
    paths = list(paths)
    found: dict[str, int] = {}
    for number, group in enumerate(groups):
        matched = [path for pattern in group.match for path in _match(pattern, paths, where)]
        if getattr(group, key) is not None:
            found |= dict.fromkeys(matched, number)
    return found


def _match(pattern: str, paths: list[str], where: str) -> list[str]:
    # A component's name stands for all of its parameters: patch_embed is patch_embed/*.
    found = [path for path in paths if fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, f"{pattern}/*")]
    if not found:
        components = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 2)}
        hint = nearest(pattern.removesuffix("/*"), sorted(components))
        raise ConfigError(f"{where}: {pattern!r} matches no parameter{hint}; parameters are {', '.join(paths)}")
    return found
