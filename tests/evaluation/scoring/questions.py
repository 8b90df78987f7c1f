"""Files of small benchmarks, as the benchmarks are published."""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from tests.tiny import picture


def png(width: int, height: int, seed: int) -> str:
    """Returns a picture as VLMEvalKit's files have it."""
    buffer = io.BytesIO()
    picture(width, height, seed).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Writes a file in VLMEvalKit's layout."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([columns, *rows])
    return path


def pope(path: Path, images: int = 5, questions: int = 3) -> Path:
    """Writes POPE with several questions about each image, and images of several sizes."""
    things = ("circle", "square", "triangle", "digit", "colour")
    rows = []
    for image in range(images):
        data = png(12 + 4 * image, 40 - 4 * image, image)
        for number in range(questions):
            words = f"is there a {things[(image + number) % 5]}?"
            category = ("adversarial", "popular", "random")[number % 3]
            rows.append([str(len(rows)), data, words, ("yes", "no")[(image + number) % 2], category])
    return write_tsv(path, ["index", "image", "question", "answer", "category"], rows)


def mme(path: Path, images: int = 4) -> Path:
    """Writes MME: two questions about each image."""
    rows = []
    for image in range(images):
        for answer in ("Yes", "No"):
            words = f"is this a {'red' if answer == 'Yes' else 'blue'} shape {image}? Please answer yes or no."
            category = ("existence", "count")[image % 2]
            rows.append([str(len(rows)), png(16, 16, image), words, answer, category, f"{category}/{image}.png"])
    return write_tsv(path, ["index", "image", "question", "answer", "category", "image_path"], rows)
