"""The config section for branching from another run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from solo.config.base import Section


class BranchConfig(Section):
    """The checkpoint of another run from which this run continues in its own folder; see `solo.training.branching`.

    The weights, the averages and, where it fits, the optimizer state are restored. `init_from` loads only the weights.
    """

    keys_decide = ("result",)

    run: str = Field(min_length=1, description="folder of the other run")
    step: NonNegativeInt | Literal["best"] | None = Field(
        None,
        description="step of the checkpoint; best: the best one by the other run's checkpoint.best; default: the newest"
        " one. The new run's `config.yaml` records the step that was chosen",
    )
