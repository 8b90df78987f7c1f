"""Measures the time and memory of importing a checkpoint of SOLO-7B's shape, compared with a plain copy of it.

Run as `python -m tests.benchmarks.import_7b [--layers N] [--folder FOLDER]` from the root of the repository. At full
size it writes 14.5 GB of random numbers three times, so `python -m tests.benchmarks` does not run it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from solo.config import load_config
from solo.interop.layouts.native import NATIVE
from solo.interop.layouts.solo import SOLO
from solo.interop.tensor_files import TensorInfo, TensorReader, write_tensors
from solo.model.parameters import ModelDefinition

# Runs in a small process of its own, because the peak of a child includes its parent's memory at the fork.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
CONFIG = "configs/models/solo_7b.yaml"


def main(arguments: list[str]) -> None:
    """Writes a checkpoint, copies it, imports it, and compares the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", help="where to make a temporary folder")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=parsed.folder) as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        definition, size = write_source(source, parsed.layers)
        print(f"{size / 1e9:.2f} GB in {len(SOLO.tensors(definition))} tensors, {definition.config.layers} layers")
        report("cp", size, *measured(["cp", "-r", str(source), f"{folder}/copy"], Path(folder, "copy"), source))
        shutil.rmtree(f"{folder}/copy")
        command = [sys.executable, "-m", "solo.cli", "import", str(source), "--as", CONFIG, "--out", str(out)]
        report("import", size, *measured([*command, "--set", f"model.layers={parsed.layers}"], out, source))
        compare(source, out, definition)


def write_source(folder: Path, layers: int) -> tuple[ModelDefinition, int]:
    """Writes random finite bfloat16 values in shards of 5 GB."""
    config = load_config(CONFIG, [f"model.layers={layers}"])
    definition = ModelDefinition(config.model, config.image, config.model.vocab_size or 0)
    tensors = [TensorInfo(rule.name, rule.shape, np.dtype(ml_dtypes.bfloat16)) for rule in SOLO.tensors(definition)]
    shapes = {info.name: info.shape for info in tensors}
    generator = np.random.default_rng(0)

    def values(name: str) -> np.ndarray:
        bits = generator.integers(0, 2**16, shapes[name], np.uint16)
        bits &= 0xBFFF
        return bits.view(ml_dtypes.bfloat16)

    folder.mkdir()
    write_tensors(folder, tensors, values)
    written = SOLO.config_json(config, definition.vocab_size) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(written))
    return definition, sum(info.nbytes for info in tensors)


def measured(command: list[str], out: Path, source: Path) -> tuple[float, int]:
    """Returns the seconds until the result is on disk, starting with a cold page cache, and the peak RSS in bytes."""
    for file in source.iterdir():
        with open(file) as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    peak = subprocess.run([sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, check=True).stdout
    for file in out.iterdir():
        with open(file) as opened:
            os.fsync(opened.fileno())
    return time.perf_counter() - started, int(peak) * (1 if sys.platform == "darwin" else 1024)


def report(title: str, size: int, seconds: float, peak: int) -> None:
    """Prints one line."""
    print(f"{title:8}{seconds:7.1f} s  {size / seconds / 1e9:5.2f} GB/s  peak RSS {peak / 1e9:.2f} GB", flush=True)


def compare(source: Path, out: Path, definition: ModelDefinition) -> None:
    """Compares every seventh tensor, bit for bit."""
    ours = {rule.slices[0]: rule for rule in NATIVE.tensors(definition)}
    with TensorReader(source) as theirs, TensorReader(out) as found:
        rules = SOLO.tensors(definition)[::7]
        for rule in rules:
            twin = ours[rule.slices[0]]
            again = rule.join(twin.split(found.read(twin.name)))
            assert again.tobytes() == theirs.read(rule.name).tobytes(), rule.name
    print(f"{len(rules)} tensors compared, bitwise equal")


if __name__ == "__main__":
    main(sys.argv[1:])
