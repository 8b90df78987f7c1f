"""Detects files that were added to or removed from a source since it was prepared. Lists files but reads none."""

from __future__ import annotations

import os
from collections.abc import Iterator

from solo.config import Config, ConfigError
from solo.data.readers.paths import expand
from solo.data.store.description import Description
from solo.data.store.inputs import Inputs, parts_digest
from solo.data.store.opened import source_folder
from solo.data.store.schedule import list_parts
from solo.files import is_remote


def grown(config: Config) -> list[str]:
    """Returns a note for each prepared source whose files were added or removed since it was prepared.

    A source without any of its files was prepared elsewhere and gets no note.

    Args:
        config: the run's config. `data.input_check` is not used.
    """
    return [
        f"source {name}: {change} since it was prepared; run solo prepare to take them up"
        for name in config.data.sources
        if (change := _change(name, config))
    ]


def _change(name: str, config: Config) -> str:
    folder = source_folder(name, config)
    made, inputs = Description.read(folder), Inputs.read(folder)
    if made is None or inputs is None or inputs.content != made.content:
        return ""  # unknown
    options = config.data.sources[name].options
    if inputs.files and "split" not in options:  # a split would leave out some of the files
        listed = set(_listed(options.get("path")))
        new = sum(path not in inputs.files for path in listed)
        gone = sum(path not in listed and (is_remote(path) or not os.path.exists(path)) for path in inputs.files)
        if gone == len(inputs.files):
            return ""
        return f"{new:,} new files, {gone:,} missing" if listed and (new or gone) else ""
    try:
        same = not inputs.folders_changed() or parts_digest(list_parts(name, config, inputs.size)) == inputs.parts
    except (ConfigError, OSError):  # the folder does not exist on this machine
        return ""
    return "" if same else "files were added, removed or renamed"


def _listed(paths: object) -> Iterator[str]:
    """Yields the files that a path, a glob, a range, or a list of them names."""
    for path in paths if isinstance(paths, list | tuple) else [paths]:
        if isinstance(path, str):
            try:
                yield from (each for each in expand(path, "path") if is_remote(each) or not os.path.isdir(each))
            except (ConfigError, OSError):
                continue  # the file is missing
