"""A run says at its start if it is measured on what it trains on."""

import json
from pathlib import Path

from solo.config import parse_config
from solo.data.store.prepare import prepare
from solo.evaluation.held_out import not_held_out
from tests.tiny import MODEL


def write(path: Path, texts: list[str]) -> dict:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"options": {"path": str(path)}}


def test_shared_records_are_counted(tmp_path: Path) -> None:
    texts = [f"text number {number} " * 5 for number in range(40)]
    sources = {
        "train": write(tmp_path / "train.jsonl", texts[:30]),
        "other": write(tmp_path / "other.jsonl", texts[30:32]),
        "apart": write(tmp_path / "apart.jsonl", texts[32:]),
        "mixed": write(tmp_path / "mixed.jsonl", [*texts[28:], texts[39]]),
    }
    stage = {"mixture": {"train": 1.0}, "steps": 1, "batch_rows": 1, "optimizer": {"learning_rate": 0.1}}
    losses = {name: {"source": name} for name in ("apart", "mixed", "train")}
    config = parse_config(
        {
            "name": "run",
            "data": {
                "folder": str(tmp_path / "data"),
                "sources": sources,
                "records_per_shard": 7,
                "tokenizer": {"vocab_size": 300},
            },
            "model": MODEL,
            "stages": [{"name": "one", **stage}, {"name": "two", **stage, "mixture": {"train": 1.0, "other": 1.0}}],
            "evaluation": {"losses": losses, "tasks": {"task": {"source": "mixed"}}},
        }
    )
    assert not_held_out(config, prepare(config)) == [
        "evaluation/task, held_out/mixed: 2 of 12 different records of source 'mixed' are also in source 'train', which"
        " stage 'one' trains on",
        "evaluation/task, held_out/mixed: 2 of 12 different records of source 'mixed' are also in source 'other', which"
        " stage 'two' trains on",
        "held_out/train: source 'train' is not held out; stage 'one' trains on it (held_out and take select a share of"
        " a source)",
    ]
