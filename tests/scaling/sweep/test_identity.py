"""The keys on which a run's id depends, and those on which it does not."""

from pathlib import Path

import pytest

from solo.scaling.sweep.points import Point, expand
from tests.scaling.sweep.tiny_sweep import planned


def point(folder: Path, **changes: object) -> Point:
    return expand(planned(folder, set=changes, machine={"name": "h100-2"}))[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model.width": 32},
        {"model.compute_dtype": "bfloat16"},
        {"model.parametrisation": {"kind": "mup", "base_width": 8}},
        {"stages.0.steps": 11},
        {"stages.0.optimizer.learning_rate": 2e-2},
        {"stages.0.row_slots": 256},
        {"image.patch_size": 4},
        {"data.sources.scenes.limit": 200},
        {"data.tokenizer.vocab_size": 310},
        {"evaluation.losses.text.source": "scenes"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_result_changes_the_id(tmp_path: Path, changes: dict) -> None:
    assert point(tmp_path, **changes).id != point(tmp_path).id


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"mesh": {"fsdp": 2, "data": -1}},
        {"model.remat": "full"},
        {"model.scan_layers": False},
        {"model.attention_tile": [128, 128]},
        {"compiler_options": {"xla_flag": True}},
        {"data.folder": "elsewhere"},
        {"checkpoint.every_steps": 7},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_where_it_runs_does_not(tmp_path: Path, changes: dict) -> None:
    assert point(tmp_path, **changes).id == point(tmp_path).id


def test_keys_in_another_order_are_the_same(tmp_path: Path) -> None:
    first = point(tmp_path, **{"seed": 3, "model.width": 32})
    assert first.id == point(tmp_path, **{"model.width": 32, "seed": 3}).id
