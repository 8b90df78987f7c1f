"""Plans a stage over one source of 100 million records, and resumes it at step 1,000,000.

Run as `python -m tests.benchmarks.large_source [--records N] [--folder FOLDER]`. It writes an index of N records (an
image, a question and an answer each; 2 GB) once, and then measures in fresh processes how long the first batch takes to
plan, how long a resumed run takes, and how much memory a process needs beyond the mapped index.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from solo.config import DataConfig, ImageConfig, OptimizerConfig, SourceConfig, StageConfig
from solo.data.planning.stage_plan import StagePlan
from solo.data.store.index import IMAGE, SUPERVISED_TEXT, TEXT, open_index

IMAGES = ImageConfig(patch_size=32, max_side=1024)
RESUMED = 1_000_000
_BLOCK = 1 << 22


def write_index(folder: Path, records: int) -> None:
    """Writes `runs.npy`, `record_run.npy` and `image_size.npy`: photographs of 320 to 1280 pixels a side."""
    random = np.random.default_rng(0)
    new = np.lib.format.open_memmap
    runs = new(folder / "runs.npy", "w+", np.uint32, (3 * records,))
    ends = new(folder / "record_run.npy", "w+", np.uint32, (records + 1,))
    sizes = new(folder / "image_size.npy", "w+", np.uint16, (records, 2))
    for start in range(0, records, _BLOCK):
        stop = min(start + _BLOCK, records)
        count = stop - start
        block = np.empty((count, 3), np.uint32)
        block[:, 0] = IMAGE << 30 | np.arange(start, stop)
        block[:, 1] = TEXT << 30 | random.integers(4, 40, count)
        block[:, 2] = SUPERVISED_TEXT << 30 | random.geometric(1 / 60, count)
        runs[3 * start : 3 * stop] = block.ravel()
        ends[start : stop + 1] = np.arange(3 * start, 3 * stop + 1, 3)
        sizes[start:stop] = random.integers(320, 1281, (count, 2))


def own_memory() -> int:
    """Returns the bytes of this process that no file backs."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def measure(folder: Path, snapshot: str | None) -> dict[str, float | str]:
    """Plans one batch in this process."""
    optimizer = OptimizerConfig(learning_rate=1e-3)
    stage = StageConfig(
        name="large", mixture={"large": 1.0}, steps=10 * RESUMED, batch_rows=64, row_slots=8192, optimizer=optimizer
    )
    before, started = own_memory(), time.perf_counter()
    index = open_index(folder)
    data = DataConfig(sources={"large": SourceConfig(reader="folder")})
    plan = StagePlan(stage, {"large": index}, IMAGES, data, seed=0)
    ready = time.perf_counter()
    step = 0
    if snapshot:
        plan.seek(json.loads(snapshot))
        step = RESUMED
    rows = plan.rows(step)
    return {
        "plan": ready - started,
        "batch": time.perf_counter() - started,
        "own": (own_memory() - before) / len(index),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "documents": sum(map(len, rows)) / len(rows),
        "snapshot": json.dumps(made_up(plan)),
    }


def made_up(plan: StagePlan) -> dict[str, object]:
    """Returns a snapshot as a run has it at step `RESUMED`, without planning all steps before: the cursor is near."""
    found = plan.snapshot(8)
    per_window = 64 * 8 // found["window"] if found["window"] else 0
    window = RESUMED * 64 // (per_window or 256)
    drawn = {**found["drawn"], "cursor": int(found["drawn"]["cursor"] * window / max(found["window"], 1))}
    return {**found, "window": window, "drawn": drawn}


def main(folder: Path, records: int) -> None:
    """Writes the index if it is missing, and prints the measurements."""
    if not (folder / "image_size.npy").exists():
        write_index(folder, records)
    size = sum(path.stat().st_size for path in folder.glob("*.npy"))
    print(f"{records:,} records: index of {size / records:.1f} bytes a record")
    snapshot = ""
    for name in ("first batch", "first batch again", f"resumed at step {RESUMED:,}"):
        arguments = [sys.executable, "-m", "tests.benchmarks.large_source", "--folder", str(folder), "--measure"]
        if name.startswith("resumed"):
            arguments += ["--snapshot", snapshot]
        found = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        snapshot = found["snapshot"]
        print(
            f"{name}: {found['batch']:.2f} s (of which {found['plan']:.2f} s to set up), {found['own']:.2f} bytes a "
            f"record of the process's own memory, {found['documents']:.1f} documents a row",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--snapshot")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.folder, given.snapshot)))
    elif given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        main(given.folder, given.records)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), given.records)
