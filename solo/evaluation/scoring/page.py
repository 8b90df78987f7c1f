"""The predictions of a call as one HTML file with images, questions and answers that can be filtered and searched.

The page contains each image once, as a thumbnail, and renders questions when the user scrolls to them. It needs no
network and runs only its own script.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image as PillowImage

import solo
from solo.data.record import Image
from solo.evaluation.scoring.answering import Line
from solo.evaluation.scoring.intervals import Difference
from solo.evaluation.scoring.outcome import Evaluated, Outcome
from solo.evaluation.scoring.scores import Comparison
from solo.files import json_text

PAGE_MARK = " · solo</title>"
"""A text by which a page of ours is known."""

SIDE = 208  # pixels of a thumbnail's longer side
_SMALL = 64  # smaller pictures are kept as they are
WAYS = {
    "shown": "with images",
    "removed": "without images",
    "blanked": "blanked images",
    "language_model": "language model, without images",
}
MEASURES = {
    "multimodal_gain": "multi-modal gain: with images - without",
    "leakage": "leakage: without images - language model, at least 0",
    "gain_over_blanked": "gain over blanked images",
}


def render(outcome: Outcome, most: int) -> str:
    """Returns the page. Equal arguments give equal text.

    Args:
        outcome: the scores and predictions.
        most: maximum number of questions of a benchmark to show. If it has more, an evenly spaced subset is shown.
    """
    album = _Album()
    tasks = [_task(each, most, album) for each in outcome.tasks]
    data = {"tasks": tasks, "images": album.thumbnails}
    folder = files("solo.evaluation.scoring")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(folder.joinpath("page.html.j2").read_text(encoding="utf-8")).render(
        model=outcome.model,
        version=solo.__version__,
        scores=[row for each in outcome.tasks for row in _scores(each)],
        differences=[row for each in outcome.tasks for row in _differences(each)],
        # Nothing within may end the element that holds it.
        data=Markup(json_text(data).replace("<", "\\u003c")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


class _Album:
    """Thumbnails by number, each picture once."""

    def __init__(self) -> None:
        self.thumbnails: list[str] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, image: Image) -> int:
        """Returns the number of a picture's thumbnail, which is made if it is missing."""
        if image.data not in self._numbers:
            self._numbers[image.data] = len(self.thumbnails)
            self.thumbnails.append(thumbnail(image))
        return self._numbers[image.data]


def thumbnail(image: Image) -> str:
    """Returns a small picture as a data URI; an empty text if the image cannot be decoded."""
    try:
        picture = image.decode()
    except OSError:
        return ""
    buffer = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(buffer, "WEBP", lossless=True)
    else:
        picture.thumbnail((SIDE, SIDE), PillowImage.Resampling.BICUBIC, reducing_gap=2.0)
        picture.save(buffer, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _task(each: Evaluated, most: int, album: _Album) -> dict[str, Any]:
    lines = next(iter(each.scores.values())).lines
    count = len(lines)
    chosen = range(count) if count <= most else np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()
    questions = list(each.task.questions.values())
    return {
        "name": each.task.benchmark.name,
        "title": each.task.benchmark.title,
        "of": count,
        "ways": [WAYS[name] for name in each.scores],
        "against": [
            {"name": compared_with(comparison), "way": list(each.scores).index(comparison.way)}
            for comparison in each.comparisons
        ],
        "records": [
            {
                "key": lines[number]["key"],
                "prompt": lines[number]["prompt"].replace("<image>", "").strip(),
                "references": lines[number]["references"],
                "options": lines[number]["options"],
                "labels": lines[number]["labels"],
                "images": [album.number(image) for image in _images(questions[number].prompt)],
                "answers": [_answer(score.lines[number]) for score in each.scores.values()],
                "others": [_other(comparison.lines, lines[number]["key"]) for comparison in each.comparisons],
            }
            for number in chosen
        ],
    }


def _images(turns: Sequence[Any]) -> list[Image]:
    return [part for turn in turns for part in turn.content if isinstance(part, Image)]


def _answer(line: Line) -> dict[str, Any]:
    marks = [name for name in ("cut", "shrunk", "too_long", "guessed") if line.get(name)]
    return {"text": line["answer"], "extracted": line["extracted"], "score": line["score"], "marks": marks}


def _other(lines: Mapping[str, Line], key: str) -> dict[str, Any] | None:
    return _answer(lines[key]) if key in lines else None


def _scores(each: Evaluated) -> list[dict[str, str]]:
    return [
        {
            "task": each.task.benchmark.title if place == 0 else "",
            "way": WAYS[name],
            "score": points(score.value.value),
            "interval": bounds(score.value.low, score.value.high),
            "items": f"{score.items:,}",
            "cut": f"{score.count('cut'):,}" if score.count("cut") else "",
            "metric": score.metric,
            "convention": score.settings.convention,
        }
        for place, (name, score) in enumerate(each.scores.items())
    ]


def _differences(each: Evaluated) -> list[dict[str, str]]:
    rows = [(MEASURES[name], value) for name, value in each.measures.items()]
    for other in each.comparisons:
        words = f"against {compared_with(other)}: {other.items:,} items, {other.fixed:,} better, {other.broken:,} worse"
        rows.append((words, other.difference))
    return [{"task": each.task.benchmark.title, "words": words, **difference_words(value)} for words, value in rows]


def difference_words(value: Difference) -> dict[str, str]:
    """Returns the texts of a difference: `points`, `interval` and `p`."""
    return {
        "points": points(value.value, "+.1f"),
        "interval": bounds(value.low, value.high, "+.1f"),
        "p": points(value.p, ".3f"),
    }


def compared_with(other: Comparison) -> str:
    """Returns the name of the other model, and how both were asked unless the images were shown."""
    return other.model if other.way == "shown" else f"{other.model}, {WAYS[other.way]}"


def points(value: float, form: str = ".1f") -> str:
    """Returns a score, by default with one decimal, or a dash if it is undefined."""
    return "–" if value != value else format(value, form)


def bounds(low: float, high: float, form: str = ".1f") -> str:
    """Returns the bounds of an interval, or a dash if they are undefined."""
    return "–" if low != low else f"{low:{form}} to {high:{form}}"
