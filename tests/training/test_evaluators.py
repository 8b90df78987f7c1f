"""What an evaluator measured before a resumed run replaced it does not count as what it measures now."""

from solo.config import BestConfig
from solo.training.best import best_steps
from solo.training.evaluators import without_replaced


def loss(step: int, value: float, name: str = "text") -> dict:
    return {"kind": "held_out", "step": step, "task": name, "loss": value}


def resumed(step: int, *keys: str) -> dict:
    return {"kind": "resumed", "step": step, "changes": {key: ["old", "new"] for key in keys}}


def test_lines_of_a_replaced_evaluator_do_not_count() -> None:
    lines = [
        loss(2, 1.0),
        loss(2, 2.0, "v1.5"),
        {"kind": "evaluation", "step": 2, "task": "text", "score": 3.0},
        {"kind": "train", "step": 2, "loss": 4.0},
        resumed(2, "evaluation.losses.text.source", "evaluation.every_steps", "evaluation.losses.v1.5.every_steps"),
        loss(2, 5.0),
        loss(4, 6.0),
        resumed(4, "evaluation.losses.text.every_steps", "evaluation.integration_rate.text.batch_rows", "name"),
    ]
    assert without_replaced(lines) == lines[1:]
    again = [*lines, resumed(4, "evaluation.losses.v1.5.batches", "evaluation.tasks.text.metric")]
    assert without_replaced(again) == [lines[3], *lines[4:], again[-1]]


def test_the_best_step_is_that_of_the_evaluator_as_it_is_now() -> None:
    lines = [loss(2, 0.1), resumed(2, "evaluation.losses.text.source"), loss(4, 7.0), loss(6, 5.0)]
    assert best_steps(lines, BestConfig(metric="held_out/text")) == [6, 4]
    assert best_steps(lines[:1], BestConfig(metric="held_out/text")) == [2]
