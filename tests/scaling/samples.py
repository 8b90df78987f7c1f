"""Runs whose law is known."""

import csv
from pathlib import Path

import numpy as np

from solo.scaling.laws.catalogue import CHINCHILLA
from solo.scaling.laws.runs import Runs, make_runs

OVERTRAIN = Path(__file__).parent / "data" / "overtrain_runs.csv"
TRUTH = {"A": 482.0, "B": 2085.0, "E": 1.8172, "alpha": 0.3478, "beta": 0.3659}
# As published by Hoffmann et al. 2022, whose optimiser had stopped too early.
HOFFMANN = {"A": 406.4, "B": 410.7, "E": 1.6934, "alpha": 0.33917, "beta": 0.28491}


def sweep(n, d, noise: float = 0.0, seed: int = 0, truth=TRUTH, law=CHINCHILLA, **columns) -> Runs:
    """Returns runs on a law, with normal noise on log losses."""
    runs = make_runs(n, d, np.ones(len(n)), **columns)
    loss = law.loss(truth, runs.variables())
    return runs.with_loss(loss * np.exp(np.random.default_rng(seed).normal(0.0, noise, len(n))))


def grid(sizes: int = 8, ratios: int = 5, noise: float = 0.0, seed: int = 0, **options) -> Runs:
    """Returns sizes of 50 million to 5 billion, each with 5 to 160 tokens per parameter."""
    n = np.repeat(np.geomspace(5e7, 5e9, sizes), ratios)
    return sweep(n, n * np.tile(np.geomspace(5, 160, ratios), sizes), noise, seed, **options)


def isoflop(
    points: int = 7, half_width: float = 4.0, noise: float = 0.0, seed: int = 0, truth=TRUTH, center: float = 1.0
):
    """Returns five budgets of 1e17 to 1e21, sizes around the best of each."""
    flops = np.repeat(np.geomspace(1e17, 1e21, 5), points)
    steps = np.tile(np.geomspace(1 / half_width, half_width, points), 5)
    n = CHINCHILLA.optimum(truth, flops)[0] * steps * center
    return sweep(n, flops / 6 / n, noise, seed, truth)


def overtrain(data_set: str = "rpj") -> list[dict[str, str]]:
    """Returns the rows of Gadre et al. with one training set."""
    with OVERTRAIN.open() as file:
        return [row for row in csv.DictReader(file) if row["ds"] == data_set]
