"""Repositories with random weights."""

import json
import re

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

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


def without_bytes(folder):
    """Sets the head's rows of byte tokens to zero, so that random weights write words: decoders differ in bytes."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    with safe_open(folder / "model.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for number, (piece, *_) in enumerate(vocabulary):
        if re.fullmatch("<0x..>", piece):
            tensors["head.weight"][number] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
