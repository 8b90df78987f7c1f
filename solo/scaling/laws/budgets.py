"""Runs by their compute: which of them share a budget, and which are the largest."""

from __future__ import annotations

import numpy as np

from solo.scaling.laws.law import Array

SAME_BUDGET = 1.1  # sizes come in steps: runs of one planned budget differ by some percent


def group_budgets(flops: Array) -> list[np.ndarray]:
    """Places of the runs of each budget, smallest budget first. Each group spans a factor of `SAME_BUDGET` at most."""
    order = np.argsort(-flops, kind="stable")
    groups: list[list[int]] = []
    for place in order:
        if groups and flops[groups[-1][0]] <= SAME_BUDGET * flops[place]:
            groups[-1].append(int(place))
        else:
            groups.append([int(place)])
    return [np.array(sorted(group)) for group in reversed(groups)]
