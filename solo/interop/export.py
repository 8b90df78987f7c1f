"""Exporting: a checkpoint becomes a Hugging Face repository that other people's code loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from solo.data.text import Tokenizer, extend_tokenizer
from solo.interop.layout import Layout, LayoutError, Part
from solo.interop.layouts import layout_named
from solo.interop.model_card import model_card
from solo.interop.plan import Dtype, Plan
from solo.interop.repository import write_files
from solo.interop.source import Source, open_source
from solo.interop.tensor_files import MAX_SHARD_BYTES, complete_folder, write_tensors
from solo.interop.verify import Verification, verify
from solo.interop.weights import every_part
from solo.model.parameters import ModelDefinition

# Layouts whose sequences have a placeholder for every patch; the others' own code has it or needs none.
_WITH_PLACEHOLDER = ("native", "fuyu")
_PLACEHOLDERS = ("<image>", "<image_patch>", "<|image_patch|>")


@dataclass(frozen=True)
class Exported:
    """What was done.

    layout        name of it
    tensors       written
    nbytes        of their values
    left_out      parameters that the layout does not hold: what images need, in a text layout
    placeholder   the token that was appended for it; None where there is one, or none is needed
    verification  what was compared; None where it was not asked for
    """

    layout: str
    tensors: int
    nbytes: int
    left_out: list[str] = field(default_factory=list)
    placeholder: str | None = None
    verification: Verification | None = None

    def summary(self) -> list[str]:
        """What a user should know, a line each."""
        lines = [f"written as {self.layout}: {self.tensors:,} tensors, {self.nbytes / 1e9:.2f} GB"]
        if self.left_out:
            lines.append(f"left out, the text path only is written: {', '.join(self.left_out)}")
        if self.placeholder:
            lines.append(f"appended to the vocabulary: {self.placeholder}, which stands for a patch")
        if self.verification is None:
            return [*lines, "not verified"]
        return [*lines, *self.verification.summary()]


def export(
    checkpoint: str | Path,
    to: str | Path,
    layout: str = "native",
    *,
    dtype: Dtype = "float32",
    verified: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a repository.

    Args:
        checkpoint: a run's folder, one of its checkpoints, or a repository as `solo import` writes it.
        to: the folder to write; it is complete, or not there.
        layout: see `solo.interop.layouts`; the text layouts take the text path of a monolith.
        dtype: of the weights.
        verified: read everything back and compare it with the checkpoint: tensors by their bits, and, where PyTorch
            and transformers are there, what the model says.
        max_shard_bytes: of values in one file.
        report: called with what is being done.

    Raises:
        LayoutError: the layout cannot hold the model; the message names the switch.
        VerificationError: what was written is not what the checkpoint holds, or says something else.
        FileExistsError: `to` is there.
        TensorFileError: the disk has no room.
        ValueError: the checkpoint is none.
    """
    target = layout_named(layout)
    source = open_source(checkpoint)
    try:
        plan = make_plan(source, target, dtype)
        with complete_folder(to) as folder:
            report(f"writing {len(plan.tensors):,} tensors")
            write_tensors(folder, plan.tensors, plan.value, max_shard_bytes=max_shard_bytes)
            write_files(folder, plan)
            (folder / "README.md").write_text(model_card(plan, Path(to).name))
            found = verify(folder, plan, report) if verified else None
    finally:
        source.close()
    nbytes = sum(info.nbytes for info in plan.tensors)
    return Exported(layout, len(plan.tensors), nbytes, _left_out_names(plan.left_out), plan.appended, found)


def _left_out_names(missing: Sequence[Part]) -> list[str]:
    """Paths, without what they end in where a whole component is missing."""
    return sorted({part.path for part in missing})


def make_plan(source: Source, layout: Layout, dtype: Dtype) -> Plan:
    """Decide what is written. Raises LayoutError where the layout cannot hold the model."""
    if refusal := layout.refusal(source.config):
        raise LayoutError(f"{source.folder} cannot be written as {layout.name}: {refusal}")
    tokenizer, placeholder = _with_placeholder(source, layout)
    rows = max(source.definition.vocab_size, tokenizer.vocab_size if tokenizer else 0)
    image = source.config.image
    if placeholder is not None:
        image = image.model_copy(update={"placeholder_token": placeholder})
    model = source.config.model.model_copy(update={"vocab_size": rows})
    config = source.config.model_copy(update={"model": model, "image": image})
    definition = ModelDefinition(model, image, rows)
    rules = source.in_reading_order(layout.tensors(definition))
    held = {part for rule in rules for part in rule.parts}
    missing = [part for part in every_part(definition.specs) if part not in held]
    if missing and layout.has_images:
        raise LayoutError(f"a {layout.name} repository has no place for {', '.join(_left_out_names(missing))}")
    appended = placeholder if tokenizer and source.tokenizer and tokenizer is not source.tokenizer else None
    return Plan(
        source, layout, config, definition, tokenizer, {rule.name: rule for rule in rules}, dtype, missing, appended
    )


def _with_placeholder(source: Source, layout: Layout) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer to publish, and the token in it that stands for a patch; None where the layout needs none."""
    tokenizer, wanted = source.tokenizer, source.config.image.placeholder_token
    if layout.name not in _WITH_PLACEHOLDER:
        return tokenizer, wanted
    if tokenizer is None:
        raise LayoutError(
            f"a {layout.name} repository needs a tokenizer, and {source.folder} has none: put a tokenizer.model or a"
            " tokenizer.json with its tokenizer_config.json there"
        )
    token = wanted or next(name for name in _PLACEHOLDERS if tokenizer.find(name) is None)
    return extend_tokenizer(tokenizer, [token]), token
