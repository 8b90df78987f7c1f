"""Repositories with random weights."""

import json

import numpy as np

from solo.interop.layouts import LAYOUTS
from solo.interop.tensor_files import TensorInfo, write_tensors
from tests.interop.models import tiny


def save(folder, name, dtype=np.float32, change=None, rows=100):
    """Writes a tiny model and returns its tensors. `change` may remove, add or replace tensors."""
    layout, config, definition = tiny(name, rows)
    rng = np.random.default_rng(0)
    rules = LAYOUTS[layout].tensors(definition)
    tensors = {rule.name: (0.3 * rng.normal(size=rule.shape)).astype(dtype) for rule in rules}
    if change:
        change(tensors)
    infos = [TensorInfo(key, values.shape, values.dtype) for key, values in tensors.items()]
    folder.mkdir(exist_ok=True)
    write_tensors(folder, infos, tensors.__getitem__, max_shard_bytes=20_000)
    (folder / "config.json").write_text(json.dumps(LAYOUTS[layout].config_json(config, rows)))
    return tensors
