"""Compares the whole input pipeline with the sum of its parts, and measures it with worker processes.

Run as `python -m tests.benchmarks.pipeline [--photographs N]`. The parts are: reading a record's image and tokens,
decoding and cutting the image, and assembling the row. Each is timed by itself for the documents of the same rows, in
turns with the whole `Loader` on one core. Then the loader runs with worker processes on all cores, and prints the
memory that each worker holds for itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from solo.config import Config
from solo.data.planning.stage_plan import StagePlan
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import encode
from solo.data.rows.loader import Loader
from solo.data.store.prepare import Prepared, prepare
from tests.benchmarks.peers import config_of, write

ROUNDS = 5
STEPS = 30


def plan_of(config: Config, prepared: Prepared) -> StagePlan:
    """Returns the plan of the only stage."""
    indexes = {name: source.index for name, source in prepared.sources.items()}
    return StagePlan(config.stages[0], indexes, config.image, config.data, 0)


def time_parts(config: Config, prepared: Prepared, start: int) -> list[float]:
    """Returns seconds of reading, of decoding and of assembling the rows of `STEPS` steps."""
    plan, (source,) = plan_of(config, prepared), prepared.sources.values()
    rows = [plan.rows(step)[0] for step in range(start, start + STEPS)]
    times = [time.perf_counter()]
    read = [[source.whole(chunk.record) for chunk in row] for row in rows]
    times.append(time.perf_counter())
    encoded = [[encode(parts, prepared.tokenizer, config.image) for parts in row] for row in read]
    times.append(time.perf_counter())
    for row in encoded:
        documents = [(document, 0) for document in row]
        stack([assemble_row(documents, plan.shape, config.image, prepared.tokenizer.special.pad)])
    times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times)]


def time_loader(config: Config, prepared: Prepared, start: int, steps: int = STEPS) -> tuple[float, list[float]]:
    """Returns seconds of `steps` steps after a first one, and MiB that each worker process holds for itself."""
    sources = prepared.sources
    with Loader(
        plan_of(config, prepared), sources, prepared.tokenizer, config.image, config.data, start_step=start
    ) as loader:
        next(loader)
        started = time.perf_counter()
        for _ in range(steps):
            next(loader)
        took = time.perf_counter() - started
        return took, [own_mebibytes(child) for child in children()]


def children() -> list[int]:
    """Returns the processes that this one has started and that hold more than 50 MiB."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid() and own_mebibytes(int(folder.name)) > 50:
            found.append(int(folder.name))
    return found


def own_mebibytes(process: int) -> float:
    """Returns the memory that a process shares with no other, in MiB."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main(count: int) -> None:
    """Prints medians of several rounds."""
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), count)
        config = config_of(Path(temporary))
        prepared = prepare(config)
        os.sched_setaffinity(0, {min(cores)})
        parts, whole = [], []
        for round_number in range(ROUNDS):
            start = round_number * STEPS
            parts.append(time_parts(config, prepared, start))
            whole.append(time_loader(config, prepared, start)[0])
        names = ("reading", "decoding", "assembling")
        medians = {name: statistics.median(times) for name, times in zip(names, zip(*parts, strict=True), strict=True)}
        share = statistics.median(sum(part) / loader for part, loader in zip(parts, whole, strict=True))
        print(", ".join(f"{name} {1e3 * taken / STEPS:.2f} ms a row" for name, taken in medians.items()))
        alone = 1e3 * statistics.median(whole) / STEPS
        print(f"the loader takes {alone:.2f} ms a row: {share:.0%} of the speed of its parts")
        os.sched_setaffinity(0, cores)
        threads = 0.0
        for workers in (0, 1, 2, 4):
            if workers > len(cores):
                break
            data = config.data.model_copy(update={"worker_processes": workers})
            took, memory = time_loader(config.model_copy(update={"data": data}), prepared, 0, 4 * STEPS)
            threads = threads or took
            held = f", {max(memory):.0f} MiB of its own in each" if memory else ""
            row = 1e3 * took / 4 / STEPS
            print(f"{workers} worker processes: {row:.2f} ms a row, {threads / took:.2f} times threads{held}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=int, default=1000)
    main(parser.parse_args().photographs)
