"""Identifies stages with equal programs, such as those of a curriculum, which share one compiled step."""

from __future__ import annotations

from typing import Any

from solo.data.planning.stage_plan import StagePlan

# The keys of a stage that only affect its data.
_DATA: dict[str, Any] = {
    "name": "",
    "mixture_by": "documents",
    "mixture_schedule": {},
    "mixture_changes": {},
    "max_epochs": None,
    "mixture_learning": None,
    "image": None,
}


def program_of(plan: StagePlan) -> str:
    """Returns a text that is equal for stages with equal programs, given the same model and machine."""
    stage = plan.stage
    mixture = dict.fromkeys(stage.sources, 1.0)  # their names are in the program's output
    # A constant rate does not depend on the number of steps, nor does a schedule over tokens.
    steps = 1 if stage.optimizer.schedule in ("constant", "inverse_sqrt") or stage.tokens else plan.num_steps
    neutral = stage.model_copy(update={**_DATA, "mixture": mixture, "steps": steps, "epochs": None})
    return f"{plan.shape} {neutral.model_dump_json()}"
