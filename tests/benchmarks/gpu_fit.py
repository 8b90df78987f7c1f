"""Fits the time model of GPUs to measured steps: `python -m tests.benchmarks.gpu_fit [--measured FILE]`.

Compiles the steps for an absent H200 (`pip install 'solo-vlm[cuda]'`), which takes three minutes, and prints the error
of each, with the rates of `solo.planning.gpu_time` and with those that fit best, and its error when it is left out of
the fit. FILE is what `python -m tests.benchmarks.gpu_session` wrote; by default, the figures are those of
docs/benchmarks.md.

`python -m tests.benchmarks.gpu_fit MODEL [KEY=VALUE ...]` only estimates one step, with other settings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from solo.config import Config, StageConfig, load_config
from solo.data.planning.row_shape import RowShape
from solo.machines import Machine, parse_machine
from solo.model.parameters import ModelDefinition
from solo.planning.collectives import find_collectives
from solo.planning.estimate import StepTime
from solo.planning.flops import StepFlops, planned_flops
from solo.planning.gpu_time import Rates, gpu_step_time
from solo.planning.hlo import Module, parse_module
from solo.planning.program import compile_step
from solo.planning.rows import Document, Rows

MODELS = Path(__file__).parents[2] / "configs" / "models"
LOOP = "model.scan_layers=true"
# Rows of `tests.benchmarks.gpu`: six images of 16 x 16 patches and 510 text tokens.
PATCHES, TEXT, BATCH_ROWS = 1536, 510, 8


class Step(NamedTuple):
    """A measured step: a config of configs/models, its overrides, and seconds."""

    model: str
    overrides: tuple[str, ...]
    seconds: float


MEASURED = (
    Step("solo_30m", (), 16.6e-3),
    Step("solo_150m", (), 48.8e-3),
    Step("mono_internvl_2b", (), 405.5e-3),
    Step("solo_30m", (LOOP,), 22.4e-3),
    Step("solo_150m", (LOOP,), 63.0e-3),
)


class Compiled(NamedTuple):
    """What an estimate needs, and the bytes of a device's memory."""

    module: Module
    flops: StepFlops
    machine: Machine
    memory: int

    def time(self, rates: Rates) -> StepTime:
        """The estimate."""
        found = gpu_step_time(self.module, [], self.flops, self.machine, rates)
        assert isinstance(found, StepTime), found
        return found


def compiled(step: Step, machine: Machine) -> Compiled:
    """Compiles a measured step."""
    config, stage = case(step.model, step.overrides)
    definition = ModelDefinition(config.model, config.image, config.model.vocab_size or 0)
    shape = RowShape(PATCHES, TEXT, TEXT)
    rows = Rows(shape, 100, ((Document(PATCHES, TEXT, TEXT),),), "one document a row")
    program = compile_step(config, stage, definition, shape, 100, machine)
    flops = planned_flops(config, stage, definition, rows, machine.chip, machine.devices)
    module = parse_module(program.text)
    assert not find_collectives(module, program.mesh, machine, program.devices)
    return Compiled(module, flops, machine, program.total)


def case(model: str, overrides: Sequence[str]) -> tuple[Config, StageConfig]:
    """Returns the config and stage that `tests.benchmarks.gpu` measures."""
    config = load_config(MODELS / f"{model}.yaml", overrides)
    vocab_size = config.model.vocab_size or config.data.tokenizer.vocab_size
    changes = {"compute_dtype": "bfloat16", "vocab_size": vocab_size}
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    optimizer = {"learning_rate": 1e-4, "schedule": "constant", "clip_norm": 1.0}
    stage = {"name": "b", "mixture": {"a": 1.0}, "steps": 100, "batch_rows": BATCH_ROWS, "optimizer": optimizer}
    return config, StageConfig.model_validate(stage)


def fit(steps: Sequence[tuple[Compiled, float]]) -> Rates:
    """Returns the rates with the smallest squared relative errors; the share of bandwidth is kept."""

    def errors(values: np.ndarray) -> list[float]:
        return [each.time(_rates(values)).total / seconds - 1 for each, seconds in steps]

    return _rates(least_squares(errors, (0.8, 4.0), bounds=((0.2, 0.0), (1.0, 20.0))).x)


def _rates(values: Iterable[float]) -> Rates:
    products, launch = map(float, values)
    return Rates(products=products, launch=1e-6 * launch)


def estimate(model: str, overrides: tuple[str, ...], machine: Machine) -> None:
    """Prints the estimate of one step."""
    found = compiled(Step(model, overrides, 0.0), machine)
    time = found.time(Rates())
    mfu = sum(found.flops.useful.values()) / time.total / (machine.chip.peak_flops or 1.0)
    parts = (
        f"products {1e3 * time.products:.1f}, other {1e3 * time.elementwise:.1f}, attention {1e3 * time.kernels:.1f}"
    )
    print(f"{' '.join((model, *overrides))}: {1e3 * time.total:.1f} ms ({parts}), MFU {mfu:.1%}", end="")
    print(f", {found.memory / 2**30:.1f} GiB", flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("step", nargs="*", metavar="MODEL [KEY=VALUE ...]", help="only estimate this step")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="the JSON file of tests.benchmarks.gpu_session")
    parser.add_argument("--on", default="h200-1", metavar="MACHINE")
    arguments = parser.parse_args()
    if arguments.step:
        estimate(arguments.step[0], tuple(arguments.step[1:]), parse_machine(arguments.on))
        return
    steps = list(MEASURED)
    if arguments.measured:
        steps = [Step(*each) for each in json.loads(arguments.measured.read_text())["steps_for_fit"]]
    machine = parse_machine(arguments.on)
    found = [(compiled(step, machine), step.seconds) for step in steps]
    fitted = fit(found)
    print(f"rates in use {Rates()}\nfitted       {fitted}")
    titles = ("measured", "products", "other", "attention")
    print(f"{'step':42}", *(f"{title:>9}" for title in titles), " errors: in use, fitted, left out")
    for number, (step, (each, seconds)) in enumerate(zip(steps, found, strict=True)):
        rest = fit(found[:number] + found[number + 1 :])
        errors = [each.time(rates).total / seconds - 1 for rates in (Rates(), fitted, rest)]
        time = each.time(Rates())
        parts = [1e3 * part for part in (seconds, time.products, time.elementwise, time.kernels)]
        name = " ".join((step.model, *step.overrides))
        print(f"{name:42}", *(f"{part:9.1f}" for part in parts), *(f"{error:+7.1%}" for error in errors), flush=True)


if __name__ == "__main__":
    main()
