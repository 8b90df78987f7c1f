"""The section about the run that a run branches from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from solo.config.base import Section


class BranchConfig(Section):
    """The checkpoint of another run that a run continues from, in a folder of its own; see `solo.training.branching`.

    It has the weights, the optimizer state where it fits, and the averages. `init_from` takes weights alone.
    """

    keys_decide = ("result",)

    run: str = Field(min_length=1, description="folder of the other run")
    step: NonNegativeInt | Literal["best"] | None = Field(
        None,
        description="step of its checkpoint; best: by its checkpoint.best; default: the newest one. `config.yaml` has"
        " the step that was found when the branch began",
    )
