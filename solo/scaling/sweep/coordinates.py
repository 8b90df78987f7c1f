"""The coordinate check of muP (Yang et al. 2022, arXiv 2203.03466, appendix D.1).

Models of all sizes train for the same few steps on the same batches. The check measures the root mean square (RMS) of
the residual stream at three depths, and of the change of the logits. If these grow or shrink with width, learning rates
do not transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from solo.batch import Batch
from solo.config import ConfigError, MeshConfig, SafetyConfig, StageConfig
from solo.data.store.prepare import prepare
from solo.model.parameters import ModelDefinition, Parameters, define
from solo.model.regions import Regions, live_slots
from solo.scaling.sweep.batch_statistics import endless_plan, first_batches
from solo.scaling.sweep.points import first_sizes
from solo.scaling.sweep.spec import SweepSpec
from solo.sharding.mesh import make_mesh
from solo.training.step import make_stage

FLAT = 0.15
NUM_STEPS = 5
SEEDS = (0, 1, 2)
LOGITS = "change of logits"
MEASURED = ("embedded", "middle layer", "last layer", LOGITS)  # from input to output


@dataclass(frozen=True)
class Coordinates:
    """RMS of each quantity of one model after `steps` steps, over seeds and slots."""

    width: int
    layers: int
    steps: int
    scales: Mapping[str, float]


def measure(definition: ModelDefinition, stage: StageConfig, batches: Sequence[Batch]) -> list[Coordinates]:
    """Measures a model before the first step and after each, with a constant learning rate and no warm-up.

    Args:
        definition: the model; it is initialised for every seed.
        stage: its optimizer and loss.
        batches: one for each step. All measurements use the first batch.
    """
    optimizer = stage.optimizer.model_copy(update={"schedule": "constant", "warmup_steps": 0})
    stage = stage.model_copy(update={"optimizer": optimizer, "steps": len(batches)})
    made = make_stage(definition, stage, len(batches), SafetyConfig(), make_mesh(MeshConfig(), jax.devices()[:1]))

    @jax.jit
    def look(parameters: Parameters) -> dict[str, jax.Array]:
        return _activations(definition, parameters, batches[0])

    initialise = jax.jit(definition.initialise)
    squares: list[dict[str, float]] = [{} for _ in range(len(batches) + 1)]
    for seed in SEEDS:
        state = made.start(initialise(jax.random.key(seed)))
        before = look(state.parameters)
        for number in range(len(batches) + 1):
            now = look(state.parameters)
            found = {name: float(jnp.square(value).mean()) for name, value in now.items() if name != "logits"}
            found[LOGITS] = float(jnp.square(now["logits"] - before["logits"]).mean())
            for name, value in found.items():
                squares[number][name] = squares[number].get(name, 0.0) + value / len(SEEDS)
            if number < len(batches):
                state, _ = made.step(state, batches[number])
    config = definition.config
    return [
        Coordinates(config.width, config.layers, number, {name: each[name] ** 0.5 for name in MEASURED})
        for number, each in enumerate(squares)
    ]


def _activations(definition: ModelDefinition, parameters: Parameters, batch: Batch) -> dict[str, jax.Array]:
    """Returns the residual stream at three depths and the logits of the text, in float32."""
    model = definition.bind(parameters)
    stream = model.residual_stream(batch)
    places = {"embedded": 0, "middle layer": len(stream) // 2, "last layer": len(stream) - 1}
    found = {name: _live(stream[place], batch) for name, place in places.items()}
    return {**found, "logits": model.logits(model.final_norm(stream[-1].text))[..., : definition.vocab_size]}


def _live(x: Regions, batch: Batch) -> jax.Array:
    """Returns hidden states with zeros in empty slots."""
    return jnp.where(live_slots(batch.attend)[..., None], x.join().astype(jnp.float32), 0.0)


def spreads(found: Sequence[Coordinates]) -> dict[str, float]:
    """Returns, for each quantity, its largest RMS among the sizes over its smallest, minus 1."""
    scales = {name: [each.scales[name] for each in found] for name in found[0].scales}
    return {name: max(values) / min(values) - 1 for name, values in scales.items() if min(values) > 0}


def check_spec(
    spec: SweepSpec, note: Callable[[str], None], by: str | None = None
) -> dict[str, list[list[Coordinates]]]:
    """Measures all sizes of a sweep's ladder, with the parametrisation of its base.

    Args:
        spec: a sweep with a ladder and data; the first value of each axis is used.
        note: called with a line for every size.
        by: an axis, such as the design: each of its values is measured. Without one, the standard parametrisation is
            measured too, for comparison.

    Returns:
        For each parametrisation, or each value of `by`, and each size: the coordinates after 0 to `NUM_STEPS` steps.

    Raises:
        ConfigError: the sweep has no ladder or no data, or its parametrisation is the standard one.
    """
    if spec.ladder is None or spec.row_statistics is not None:
        raise ConfigError(f"sweep {spec.name!r}: a coordinate check needs a ladder, and data instead of row_statistics")
    groups = first_sizes(spec, by)
    first = next(iter(groups.values()))
    kind = first[0].model.parametrisation.kind
    if kind == "standard":
        raise ConfigError(f"{spec.base}: model.parametrisation.kind is standard; there is nothing to check")
    kinds = {group: kind for group in groups} if by is not None else {kind: kind, "standard": "standard"}
    prepared = prepare(first[0], note)
    batches = first_batches(first[0], prepared, endless_plan(first[0], prepared), NUM_STEPS)
    found: dict[str, list[list[Coordinates]]] = {name: [] for name in kinds}
    for name, sizes in found.items():
        for config in groups.get(name, first):
            note(f"{name}: width {config.model.width}, {config.model.layers} layers")
            parametrisation = config.model.parametrisation.model_copy(update={"kind": kinds[name]})
            model = config.model.model_copy(update={"parametrisation": parametrisation})
            definition = define(config.model_copy(update={"model": model}), prepared.tokenizer.vocab_size)
            sizes.append(measure(definition, config.stages[0], batches))
    return found


def is_flat(found: Sequence[Sequence[Coordinates]]) -> bool:
    """Returns whether the RMS of activations is the same for all sizes, within `FLAT`, after every step."""
    return all(spread <= FLAT for step in zip(*found, strict=True) for spread in judged(step).values())


def judged(found: Sequence[Coordinates]) -> dict[str, float]:
    """Returns the spreads of the activations. Logits are left out, because they shrink with width at initialisation."""
    return {name: spread for name, spread in spreads(found).items() if name != LOGITS}
