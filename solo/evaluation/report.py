"""The report of a run: one self-contained HTML file with its figures, its results, and answers of the model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import solo
from solo.config import BestConfig, Config, dump_config
from solo.data.record import Image, Turn, encode_png
from solo.evaluation.metrics import collapsed, edit_distance, is_match
from solo.evaluation.results import UNITS, newest, percent, points, titled
from solo.evaluation.samples import SampleAnswers
from solo.evaluation.tasks import Example, TaskResult
from solo.files import write_whole
from solo.model.count import active_parameters
from solo.model.parameters import ModelDefinition
from solo.training.best import ranked, values_by_step
from solo.training.evaluators import TRAINED
from solo.units import duration, short

_WIDEST, _TALLEST = 400, 192  # of small images, enlarged, in CSS pixels
_EXPERTS = {"ffn": "feed-forward", "qkv": "query, key and value", "out": "attention output", "norms": "norm"}
_WEB_FORMATS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


def write_report(
    path: str | Path,
    config: Config,
    definition: ModelDefinition,
    results: Sequence[TaskResult],
    lines: Sequence[Mapping[str, Any]],
    samples: Sequence[SampleAnswers] = (),
) -> None:
    """Writes the report as one HTML file. The write is atomic.

    Args:
        path: the file.
        config: the config of the run.
        definition: the definition of the model, for parameter counts.
        results: results of the tasks, with the examples to show.
        lines: lines of `metrics.jsonl`, for the loss chart and the figures.
        samples: sample answers to show.
    """
    write_whole(Path(path), render(config, definition, results, lines, samples))


def render(
    config: Config,
    definition: ModelDefinition,
    results: Sequence[TaskResult],
    lines: Sequence[Mapping[str, Any]],
    samples: Sequence[SampleAnswers] = (),
) -> str:
    """Returns the report's HTML; see `write_report`. Equal arguments give equal text."""
    # Imported here: Matplotlib takes half a second, and training imports this module at its start.
    from solo.evaluation.chart import held_out_chart, loss_chart

    source = files("solo.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        name=config.name,
        lead=_lead(config),
        facts=run_facts(definition, lines) + best_facts(lines, config.checkpoint.best),
        tasks=[_task(result) for result in results],
        samples=[_samples(found) for found in samples],
        any_blank=any(result.score_blank is not None for result in results),
        chart=loss_chart(lines),
        held_out=held_out_rows(lines),
        held_out_chart=held_out_chart(lines),
        config=dump_config(config),
        version=solo.__version__,
        percent=percent,
        points=points,
    )


@dataclass(frozen=True)
class Fact:
    """A figure of a run, as shown."""

    name: str
    value: str


def run_facts(definition: ModelDefinition, lines: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """Returns the size of the model and the cost of its training.

    The totals are correct even if lines are missing in `metrics.jsonl`.
    """
    facts = [Fact("parameters", short(definition.num_parameters()))]
    active = active_parameters(definition)
    if active.patches != active.text:
        facts += [
            Fact("active for a patch", short(active.patches)),
            Fact("active for a text token", short(active.text)),
        ]
    steps = [line for line in lines if line["kind"] == "train"]
    if steps:
        tokens = sum(line["tokens"] for line in steps)
        slots = sum(line["tokens"] / line["useful_share"] for line in steps if line["useful_share"])
        facts += [
            Fact("steps", f"{max(len(steps), steps[-1]['step']):,}"),
            Fact("tokens", short(steps[-1].get("total_tokens", tokens))),
            Fact("visual tokens", f"{sum(line['visual_tokens'] for line in steps) / max(tokens, 1):.0%}"),
            Fact("slots in use", f"{tokens / max(slots, 1):.1%}"),
            Fact("time in steps", duration(sum(line["timing"]["step_seconds"] for line in steps))),
        ]
    return facts


def best_facts(lines: Sequence[Mapping[str, Any]], best: BestConfig | None) -> list[Fact]:
    """Returns the step of the best checkpoint and its value, if the config names a metric and it was measured."""
    values = {} if best is None else values_by_step(lines, best)
    if best is None or not values:
        return []
    step = ranked(values, best)[0]
    return [Fact(f"best {best.metric}, at step {step:,} (@best)", f"{values[step]:.4g}")]


def held_out_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the table of held-out losses: the newest loss of every evaluator, its parts, and the lowest loss."""
    from solo.evaluation.chart import held_out_curves  # as above

    curves, rows = held_out_curves(lines), []
    for line in newest(lines, "held_out"):
        name = titled(line["task"], line.get("weights", TRAINED))
        step, lowest = min(curves.get(name, [(0, None)]), key=lambda point: (point[1] is None, point[1]))
        contexts = line.get("loss_by_context", {})
        rows.append(
            {
                "name": name,
                "targets": f"{line['targets']:,}",
                "loss": _nats(line["loss"]),
                "text_only": _nats(contexts.get("text_only")),
                "with_image": _nats(contexts.get("with_image")),
                "lowest": _nats(lowest),
                "step": f"{step:,}",
            }
        )
    return rows


def _nats(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.3f}"


def _lead(config: Config) -> str:
    model = config.model
    own = [_EXPERTS[name] for name, sharing in model.experts.model_dump().items() if sharing == "modality"]
    experts = f"patches have their own {', '.join(own)} weights" if own else "patches and text share all weights"
    stages = "1 stage" if len(config.stages) == 1 else f"{len(config.stages)} stages"
    layers = "1 layer" if model.layers == 1 else f"{model.layers} layers"
    return f"{layers} of width {model.width}; {experts}; trained in {stages}."


def _task(result: TaskResult) -> dict[str, Any]:
    """Returns the template's values for a task. All images of a task are scaled by the same factor."""
    factor, sizes = _gallery(result.examples)
    shown = len(result.examples)
    some = f"The first {shown} of {result.count:,} examples, not selected." if shown < result.count else ""
    return {
        "result": result,
        "title": titled(result.task.replace("_", " ").capitalize(), result.weights),
        "unit": UNITS[result.metric],
        "summary": f"{percent(result.score)} {UNITS[result.metric]}. {some}",
        "examples": [_example(example, result.metric, factor) for example in result.examples],
        **sizes,
    }


def _gallery(examples: Sequence[Example]) -> tuple[float, dict[str, int]]:
    """Returns the scale of all images of some examples, and the sizes of their cards, in CSS pixels."""
    images = [image for example in examples for turn in example.prompt for image in _images(turn)]
    widest, tallest = (max((image.size()[side] for image in images), default=0) for side in (0, 1))
    factor = enlargement(widest, tallest)
    height = round(tallest * factor) + 29 if images else 0
    return factor, {"card_width": max(round(widest * factor) + 30, 250), "well_height": height}


def _samples(found: SampleAnswers) -> dict[str, Any]:
    """Returns the template's values for sample answers."""
    factor, sizes = _gallery(found.examples)
    first, last = min(found.answers), max(found.answers)
    return {
        "title": titled(found.name.replace("_", " ").capitalize(), found.weights),
        "summary": f"Sample answers {f'from step {first:,} to' if first < last else 'at'} step {last:,}.",
        "examples": [
            {
                "id": example.id,
                "turns": [_turn(turn, len(example.prompt) > 2, factor) for turn in example.prompt if turn.content],
                "reference": example.reference,
                "answers": [(f"{step:,}", answers[place]) for step, answers in found.answers.items()],
            }
            for place, example in enumerate(found.examples)
        ],
        **sizes,
    }


def enlargement(width: int, height: int) -> float:
    """Returns the display scale for images of at most this size: a whole number, or below 1 for large images."""
    fit = min(_WIDEST / max(width, 1), 1.5 * _TALLEST / max(height, 1))
    return min(fit, 1.0) if fit < 2 else float(max(1, min(_WIDEST // max(width, 1), _TALLEST // max(height, 1))))


def _example(example: Example, metric: str, factor: float) -> dict[str, Any]:
    return {
        "id": example.id,
        "turns": [_turn(turn, len(example.prompt) > 2, factor) for turn in example.prompt if turn.content],
        "reference": example.reference,
        "answer": _answer(example.answer, example.reference, metric),
        "blanked": None if example.blanked is None else _answer(example.blanked, example.reference, metric),
    }


def _answer(answer: str, reference: str, metric: str) -> dict[str, Any]:
    right, note = is_match(answer, reference), ""
    if metric == "character_error_rate" and not right:
        note = f"{edit_distance(collapsed(answer), collapsed(reference))} edits"
    return {"text": collapsed(answer), "right": right, "note": note}


def _turn(turn: Turn, many: bool, factor: float) -> dict[str, Any]:
    parts = [
        {"image": None, "text": part} if isinstance(part, str) else {"image": _image(part, factor)}
        for part in turn.content
    ]
    return {"speaker": _SPEAKERS.get(turn.role, "") if many else "", "parts": parts}


def _image(image: Image, factor: float) -> dict[str, Any]:
    width, height = image.size()
    kind = next((kind for start, kind in _WEB_FORMATS.items() if image.data.startswith(start)), None)
    data = image.data if kind else encode_png(image.decode()).data
    source = f"data:{kind or 'image/png'};base64,{base64.b64encode(data).decode()}"
    return {
        "source": source,
        "enlarged": factor > 1,
        "width": round(width * factor),
        "height": round(height * factor),
        "alt": f"{width} by {height} pixels",
    }


def _images(turn: Turn) -> list[Image]:
    return [part for part in turn.content if isinstance(part, Image)]
