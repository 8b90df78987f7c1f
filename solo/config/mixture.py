"""The mixture of a stage: its types, their validation, and mean weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, Tag

from solo.config.base import Section, nearest

LARGEST_WEIGHT = 1e9

Weights = dict[str, NonNegativeFloat]
MaxEpochs = Annotated[
    Annotated[PositiveFloat, Tag("(one)")] | Annotated[dict[str, PositiveFloat], Tag("(each)")],
    Discriminator(lambda value: "(each)" if isinstance(value, dict) else "(one)"),
]
WeightsAtSteps = dict[PositiveInt, Annotated[Weights, Field(min_length=1)]]


class MixtureLearningConfig(Section):
    """Mixture weights learned from the sources' losses, as in Skill-it's online algorithm (arXiv 2307.14430).

    At every update, the weight of source i is its initial weight times exp(rate * sum over j of graph[i][j] * L_j).
    L_j is the mean loss of source j since the previous update, summed over the last `window` updates. A source that
    is not in `graph` has an edge only to itself.
    """

    keys_decide = ("data",)

    every: int = Field(ge=1, description="steps between two updates")
    rate: float = Field(0.2, gt=0, description="step size (eta) of the exponentiated gradient")
    window: int = Field(3, ge=1, description="number of updates over which losses are summed")
    graph: dict[str, dict[str, NonNegativeFloat]] = Field(
        {}, description="for each source, the sources that it helps to learn, with a factor; default: itself, 1.0"
    )
    least: float = Field(0.0, ge=0, lt=1, description="minimum share of every source in the mixture")


def sources_of(mixture: Weights, changes: WeightsAtSteps) -> tuple[str, ...]:
    """Returns the sources of a mixture, followed by those that its changes add, ordered by step."""
    return tuple(dict.fromkeys([*mixture, *(name for step in sorted(changes) for name in changes[step])]))


def weight_points(name: str, mixture: Weights, schedule: WeightsAtSteps) -> list[tuple[int, float]]:
    """Returns the (step, weight) pairs of a source, ordered by step, starting at step 0."""
    return [(0, mixture[name]), *((step, schedule[step][name]) for step in sorted(schedule) if name in schedule[step])]


def mean_weights(mixture: Weights, schedule: WeightsAtSteps, between: Literal["step", "linear"], steps: int) -> Weights:
    """Returns the mean weight of every source over a stage of this many steps."""
    means = {}
    for name in mixture:
        points = weight_points(name, mixture, schedule)
        total = 0.0
        for (start, weight), (stop, following) in zip(points, [*points[1:], (steps, points[-1][1])], strict=True):
            total += (stop - start) * (weight if between == "step" else (weight + following) / 2)
        means[name] = total / steps
    return means


def mixture_faults(stage: Any) -> Iterator[str]:
    """Yields what is wrong with the mixture of a `StageConfig`."""
    mixture, schedule, changes = stage.mixture, stage.mixture_schedule, stage.mixture_changes
    yield from _weight_faults(mixture, schedule, changes)
    for key, entries in (("mixture_schedule", schedule), ("mixture_changes", changes)):
        if entries and stage.steps is None:
            yield f"{key} counts steps, so the stage needs steps instead of epochs"
        for step in entries:
            if stage.steps is not None and step >= stage.steps:
                yield f"{key}: step {step} is not reached, because the stage has {stage.steps} steps"
    for step, entry in schedule.items():
        yield from _unknown(f"mixture_schedule.{step}", entry, list(mixture), " (list it there with weight 0)")
    if not any(mixture.values()) or any(
        not sum({**mixture, **now}.values()) for now in _states(mixture, schedule, changes)
    ):
        yield "mixture: at every step some source needs a weight above 0"
    if isinstance(stage.max_epochs, dict):
        yield from _unknown("max_epochs", stage.max_epochs, list(sources_of(mixture, changes)))
    if stage.max_epochs is not None and stage.epochs is not None:
        yield "max_epochs goes with steps; a stage counted in epochs says itself how often it reads each source"
    learning = stage.mixture_learning
    if learning is not None:
        if schedule or changes or stage.steps is None:
            yield "mixture_learning goes with steps, and without mixture_schedule and mixture_changes"
        for name in (*learning.graph, *(other for entry in learning.graph.values() for other in entry)):
            yield from _unknown("mixture_learning.graph", [name], list(mixture))
        if learning.least * len(mixture) >= 1:
            yield f"mixture_learning.least: {len(mixture)} sources cannot each keep a share of {learning.least:g}"


def _weight_faults(mixture: Weights, schedule: WeightsAtSteps, changes: WeightsAtSteps) -> Iterator[str]:
    later = [entry for entries in (schedule, changes) for entry in entries.values()]
    named = (("mixture_schedule", schedule), ("mixture_changes", changes))
    entries = [(f"{key}.{step}", entry) for key, steps in named for step, entry in steps.items()]
    for where, entry in (("mixture", mixture), *entries):
        for name, weight in entry.items():
            if weight > LARGEST_WEIGHT:
                yield f"{where}: the weight of {name!r} is {weight:g}, above {LARGEST_WEIGHT:g}"
    for name, weight in mixture.items():
        if not weight and not any(entry.get(name) for entry in later):
            yield f"mixture: the weight of {name!r} is {weight:g}; it must be above 0, or leave it out"


def _states(mixture: Weights, schedule: WeightsAtSteps, changes: WeightsAtSteps) -> Iterator[Weights]:
    """Yields the weights at every entry of the schedule and the changes, without interpolated weights."""
    now: Weights = {}
    changed: Weights = {}
    for step in sorted({*schedule, *changes}):
        now |= schedule.get(step, {})
        changed |= changes.get(step, {})
        yield {**now, **changed}


def _unknown(where: str, names: Mapping[str, Any] | Sequence[str], known: list[str], advice: str = "") -> Iterator[str]:
    for name in names:
        if name not in known:
            yield f"{where}: {name!r} is not a source of the stage's mixture{nearest(name, known) or advice}"
