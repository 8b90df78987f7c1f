"""Export: converts a checkpoint to a Hugging Face repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from solo.interop.export_plan import Dtype, make_plan, paths_of
from solo.interop.layouts import layout_named
from solo.interop.model_card import model_card
from solo.interop.repository import write_files
from solo.interop.source import open_source
from solo.interop.tensor_files import MAX_SHARD_BYTES, complete_folder, write_tensors
from solo.interop.verify import Verification, verify
from solo.training.evaluators import TRAINED


@dataclass(frozen=True)
class Exported:
    """Summary of an export.

    Attributes:
        layout: name of the layout.
        tensors: number of tensors written.
        nbytes: size of their values.
        left_out: parameters that the layout does not store: in a text layout, those that are only used for images.
        placeholder: the token that was appended to stand for a patch, or None.
        verification: what was compared, or None if verification was switched off.
    """

    layout: str
    tensors: int
    nbytes: int
    left_out: list[str] = field(default_factory=list)
    placeholder: str | None = None
    verification: Verification | None = None

    def summary(self) -> list[str]:
        """Returns lines for the user."""
        lines = [f"written as {self.layout}: {self.tensors:,} tensors, {self.nbytes / 1e9:.2f} GB"]
        if self.left_out:
            lines.append(f"only the text path is written; left out: {', '.join(self.left_out)}")
        if self.placeholder:
            lines.append(f"appended to the vocabulary: {self.placeholder}, which stands for a patch")
        return lines + (["not verified"] if self.verification is None else self.verification.summary())


def export(
    checkpoint: str | Path,
    to: str | Path,
    layout: str = "native",
    *,
    dtype: Dtype = "float32",
    weights: str = TRAINED,
    average: int | Sequence[int] | None = None,
    verified: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Writes a repository.

    Args:
        checkpoint: a run's folder, one of its checkpoints, or a repository as `solo import` writes it.
        to: the folder to write. Writing is atomic.
        layout: a name in `solo.interop.layouts`. The text layouts store the text path of a monolith.
        dtype: dtype of the weights.
        weights: for a run, `trained` or the name of an average that was kept in training, such as `ema`.
        average: for a run, export the mean of this many of the newest checkpoints, or of those of these steps.
        verified: read everything back and compare it with the checkpoint: tensors bit for bit, and logits and answers
            if PyTorch and transformers are installed.
        max_shard_bytes: limit on the values in a file.
        report: called with the current step.

    Raises:
        LayoutError: the layout cannot store the model; the message names the config key.
        VerificationError: the repository differs from the checkpoint.
        FileExistsError: `to` exists.
        TensorFileError: the disk has too little space.
        ValueError: `checkpoint` is not a checkpoint, or there are no such weights or checkpoints to average.
    """
    target = layout_named(layout)
    source = open_source(checkpoint, weights, average)
    try:
        plan = make_plan(source, target, dtype)
        with complete_folder(to) as folder:
            write_files(folder, plan)  # first: it refuses tokenizers that cannot be written
            report(f"writing {len(plan.tensors):,} tensors")
            write_tensors(folder, plan.tensors, plan.value, max_shard_bytes=max_shard_bytes)
            (folder / "README.md").write_text(model_card(plan, Path(to).name))
            verification = verify(folder, plan, report) if verified else None
    finally:
        source.close()
    nbytes = sum(info.nbytes for info in plan.tensors)
    return Exported(layout, len(plan.tensors), nbytes, paths_of(plan.left_out), plan.appended, verification)
