"""Sample answers for people to read: a model's answers to the first records of a source, at several steps."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from solo.config import ConfigError, EvaluationConfig
from solo.config.evaluators import SamplesConfig
from solo.data.record import Image, Turn
from solo.evaluation.tasks import Example, Records, split_answer
from solo.inference.monolith import Monolith

# Limits of an example's picture: pixels of its longer side, and the number of images that it shows.
PICTURE_SIDE = 512
PICTURE_IMAGES = 4
_GAP = 4


def sample_answers(
    model: Monolith,
    name: str,
    settings: SamplesConfig,
    sources: Mapping[str, Records],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Answers the samples with greedy decoding. All processes of the model's mesh must call it.

    Args:
        model: the model.
        name: the evaluator's name, for error messages.
        settings: the evaluator's settings.
        sources: records by source name.
        progress: called with (answered, total).

    Returns:
        The fields of a line of `metrics.jsonl`: `examples`, each with the texts `id`, `prompt`, `reference`, `answer`.
        In the prompt, `<image>` stands for an image.

    Raises:
        ConfigError: see `sample_examples`.
    """
    asked = sample_examples(name, settings, sources)
    answers = model.generate(
        [example.prompt for example in asked], settings.max_new_tokens, batch_rows=len(asked), progress=progress
    )
    return {
        "examples": [
            {
                "id": example.id,
                "prompt": prompt_text(example.prompt),
                "reference": example.reference,
                "answer": answer,
            }
            for example, answer in zip(asked, answers, strict=True)
        ]
    }


def sample_examples(name: str, settings: SamplesConfig, sources: Mapping[str, Records]) -> list[Example]:
    """Returns the samples without answers. If a record does not end with an answer, all of it is the prompt.

    Raises:
        ConfigError: the source is missing or empty.
    """
    if settings.source not in sources:
        raise ConfigError(f"evaluation samples {name!r}: source {settings.source!r} is not prepared")
    source = sources[settings.source]
    if not len(source):
        raise ConfigError(f"evaluation samples {name!r}: source {settings.source!r} has no records")
    found = []
    for number in range(min(settings.count, len(source))):
        record = source.read(number)
        try:
            prompt, reference = split_answer(record.turns)
        except ValueError:
            prompt, reference = record.turns, ""
        found.append(Example(record.id, prompt, reference, answer=""))
    return found


def prompt_text(turns: Sequence[Turn]) -> str:
    """Returns a prompt as text: one line per turn, with the role if there are several speakers."""
    many = len({turn.role for turn in turns}) > 1
    lines = []
    for turn in turns:
        text = " ".join(part if isinstance(part, str) else "<image>" for part in turn.content).strip()
        if text:
            lines.append(f"{turn.role}: {text}" if many else text)
    return "\n".join(lines)


def picture(turns: Sequence[Turn], side: int = PICTURE_SIDE) -> bytes | None:
    """Returns the first images of a prompt side by side as PNG, or None if it has none that can be decoded.

    Args:
        turns: the prompt.
        side: maximum length of the picture's longer side, in pixels.
    """
    shown: list[PillowImage.Image] = []
    for image in [part for turn in turns for part in turn.content if isinstance(part, Image)][:PICTURE_IMAGES]:
        try:
            shown.append(image.decode().convert("RGB"))
        except OSError:
            continue
    if not shown:
        return None
    height = max(each.height for each in shown)
    width = sum(each.width for each in shown) + _GAP * (len(shown) - 1)
    whole, left = PillowImage.new("RGB", (width, height), "white"), 0
    for each in shown:
        whole.paste(each, (left, 0))
        left += each.width + _GAP
    whole.thumbnail((side, side))
    file = io.BytesIO()
    whole.save(file, "png")
    return file.getvalue()


def changes_shown(
    lines: Iterable[Mapping[str, Any]], name: str, weights: str, most: int = 5
) -> list[Mapping[str, Any]]:
    """Returns at most `most` lines of one evaluator's samples, sorted by step.

    The first and the last are included, and the others are evenly spaced between them.
    """
    own: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        if line["kind"] == "samples" and line.get("task") == name and line.get("weights", "trained") == weights:
            own[line["step"]] = line
    found = [own[step] for step in sorted(own)]
    if len(found) <= most:
        return found
    return [found[place] for place in np.linspace(0, len(found) - 1, most).round().astype(int)]


@dataclass(frozen=True)
class SampleAnswers:
    """The answers of one evaluator for the report.

    name      name of the evaluator
    weights   name of the weights that answered
    examples  the examples without answers
    answers   step -> an answer for each example, in the order of the steps
    """

    name: str
    weights: str
    examples: tuple[Example, ...]
    answers: Mapping[int, tuple[str, ...]]


def samples_shown(
    lines: Sequence[Mapping[str, Any]], config: EvaluationConfig, sources: Mapping[str, Records]
) -> list[SampleAnswers]:
    """Returns the answers of every samples evaluator of the config that lines of `metrics.jsonl` hold."""
    found = []
    for name, settings in config.samples.items():
        for weights in config.weights:
            chosen = changes_shown(lines, name, weights)
            if not chosen:
                continue
            examples = sample_examples(name, settings, sources)
            answers = {
                line["step"]: tuple(said.get(example.id, "") for example in examples)
                for line in chosen
                for said in [{each["id"]: each["answer"] for each in line["examples"]}]
            }
            found.append(SampleAnswers(name, weights, tuple(examples), answers))
    return found
