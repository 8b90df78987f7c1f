"""Filters, held-out shares, empty answers and duplicates, from the config to the prepared source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import parse_config
from solo.data.store.prepare import prepare
from solo.data.text import SPECIAL_TOKENS
from tests.data.vocabularies import byte_level_json, write_repository


def write_chats(folder: Path, rows: list[tuple[str | None, str]]) -> Path:
    """LLaVA conversations of one question: (image file, answer)."""
    lines = []
    for number, (image, answer) in enumerate(rows):
        turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": answer}]
        lines.append({"id": str(number), "conversations": turns} | ({"image": image} if image else {}))
    (folder / "chats.json").write_text(json.dumps(lines))
    return folder / "chats.json"


def pictures(folder: Path) -> None:
    random = np.random.default_rng(0)
    small = PillowImage.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = small.resize((160, 120), PillowImage.Resampling.BICUBIC)
    picture.save(folder / "a.png")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    picture.resize((240, 180), PillowImage.Resampling.BICUBIC).save(folder / "larger.jpg", quality=95)
    small.rotate(180).resize((160, 120), PillowImage.Resampling.BICUBIC).save(folder / "b.png")
    PillowImage.new("RGB", (300, 20)).save(folder / "strip.png")


def prepared(tmp_path: Path, rows: list[tuple[str | None, str]], **sources: dict):
    path = write_chats(tmp_path, rows)
    options = {"path": str(path), "images": str(tmp_path)}
    repository = write_repository(tmp_path / "tokenizer", {"eos_token": "<|im_end|>"}, tokenizer_json=byte_level_json())
    config = {
        "name": "x",
        "model": {"width": 8, "layers": 1, "heads": 1, "kv_heads": 1, "ffn_width": 8},
        "data": {
            "folder": str(tmp_path / "data"),
            "records_per_shard": 3,
            "tokenizer": {"path": str(repository), "add_tokens": list(SPECIAL_TOKENS.values())},
            "sources": {name: {"reader": "llava", "options": options, **more} for name, more in sources.items()},
        },
    }
    return prepare(parse_config(config)).sources


def ids(source) -> list[str]:
    return [source.read(number).id for number in range(len(source))]


def test_what_is_left_out_is_counted_and_listed(tmp_path):
    pictures(tmp_path)
    rows = [("a.png", "a cat"), ("strip.png", "a line"), (None, ""), (None, "a secret word"), (None, "so it is")]
    filters = {"max_aspect_ratio": 4.0, "must_not_match": ["secret"]}
    (source,) = prepared(tmp_path, rows, chats={"filters": filters}).values()
    made = source.description
    assert ids(source) == ["0", "4"]
    assert made.filtered == {"max_aspect_ratio": 1, "must_not_match": 1}
    assert (made.examples, made.records, made.quarantined) == (5, 2, 1)
    (aside,) = map(json.loads, (source.folder / "quarantine.jsonl").read_text().splitlines())
    assert (aside["id"], aside["reason"]) == (
        "2",
        "turn 2 is to be learned, but has no text (empty_answers: set_aside)",
    )
    lines = [json.loads(line) for line in (source.folder / "filtered.jsonl").read_text().splitlines()]
    assert [(line["source"], line["id"], line["filter"], line["line"]) for line in lines] == [
        ("chats", "1", "max_aspect_ratio", 2),
        ("chats", "3", "must_not_match", 4),
    ]
    assert lines[0]["file"].endswith("chats.json")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, ["0", "1", "2", "3", "4", "5", "6", "7"]),
        ({"deduplicate": "exact"}, ["0", "1", "3", "4", "5", "6"]),
        ({"deduplicate": "images"}, ["0", "3", "4", "5", "6"]),
        ({"deduplicate": "similar_images", "similar_bits": 4}, ["0", "4", "5", "6"]),
    ],
)
def test_duplicates_over_parts(tmp_path, settings, kept):
    pytest.importorskip("imagehash")
    pictures(tmp_path)
    rows = [("a.png", "a"), ("a.png", "another"), ("copy.png", "a"), ("larger.jpg", "a"), ("b.png", "a")]
    rows += [(None, "a"), (None, "b"), (None, "a")]
    (source,) = prepared(tmp_path, rows, chats=settings).values()
    assert ids(source) == kept
    assert source.description.filtered == ({"deduplicate": 8 - len(kept)} if settings else {})


def test_held_out_sources_divide_a_file(tmp_path):
    rows = [(None, f"answer {number}") for number in range(60)]
    share = {"held_out": 0.3}
    found = prepared(tmp_path, rows, train=share | {"take": "train"}, test=share | {"take": "held_out"})
    train, test = ids(found["train"]), ids(found["test"])
    assert sorted([*train, *test], key=int) == [str(number) for number in range(60)]
    assert 8 <= len(test) <= 28
    assert found["train"].description.filtered == {"take": len(test)}
