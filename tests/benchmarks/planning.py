"""Measures how fast rows are planned and how full they are, for several mixtures.

Run as `python -m tests.benchmarks.planning [--set NAME=VALUE] [case ...]` from the root of the repository; `--set`
changes a constant of `solo.data.planning.tuning`.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import time

from solo.data.planning import tuning
from solo.data.planning.stage_plan import StagePlan
from tests.benchmarks.mixtures import CASES, IMAGES, data_config

WINDOWS = 12  # The second half shows the fill in the long run.


def main(names: list[str]) -> None:
    """Plans 12 windows of 256 rows of each case, on one core."""
    fills, choosing, seconds, planned = [], 0.0, 0.0, 0
    for name in names or list(CASES):
        sources, stage = CASES[name]()
        started = time.process_time()
        plan = StagePlan(stage, sources, IMAGES, data_config(stage.mixture), seed=0)
        setup = time.process_time() - started
        steps = 256 // stage.batch_rows
        found, speeds = [], []
        for number in range(WINDOWS):
            started = time.process_time()
            found.append(plan.statistics(number * steps, (number + 1) * steps))
            took = time.process_time() - started
            speeds.append(sum(found[-1].documents) / took)
            seconds, planned = seconds + took, planned + sum(found[-1].documents)
        late = found[WINDOWS // 2 :]
        documents, rows = sum(sum(window.documents) for window in late), sum(window.rows for window in late)
        patches, text, _ = sum(window.useful for window in late) / rows
        print(
            f"{name}: {statistics.median(speeds):,.0f} records/s, at best {max(speeds):,.0f}\n"
            f"  fill {sum(window.fill for window in late) / len(late):.4f}, patches "
            f"{patches / max(plan.shape.patch_slots, 1):.4f}, text {text / plan.shape.text_slots:.4f}, lowest window "
            f"{min(window.fill for window in found):.4f}\n"
            f"  {plan.shape} chosen in {setup:.2f} s, {documents / rows:.1f} documents a row, "
            f"{len(plan.snapshot(WINDOWS * steps)['carry'])} carried"
        )
        choosing += setup
        fills.append(sum(window.fill for window in late) / len(late))
    print(
        f"all: fill {statistics.mean(fills):.4f}, lowest {min(fills):.4f}, {1e6 * seconds / planned:.2f} us a document,"
        f" shapes chosen in {choosing:.2f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", metavar="NAME=VALUE")
    parser.add_argument("names", nargs="*", metavar="case")
    given = parser.parse_args()
    if given.set:
        constant, _, value = given.set.partition("=")
        if not hasattr(tuning, constant):
            parser.error(f"solo.data.planning.tuning has no {constant}")
        setattr(tuning, constant, ast.literal_eval(value))
    main(given.names)
