"""Compares an exported repository with its checkpoint: tensors read back, logits and answers computed by PyTorch.

Both models compute in float32 from the same rounded weights, so for any exported dtype their logits differ only by
float32 rounding. Our model has the vocabulary before a placeholder was appended, so the comparison fails if the
placeholder affects the predictions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image as PillowImage

from solo.inference.monolith import Monolith
from solo.interop.export_plan import ExportPlan
from solo.interop.tensor_files import TensorReader
from solo.interop.tensor_rules import ParameterSlice

# Allowed difference of logits relative to their spread, because float32 sums have another order.
TOLERANCE = 1e-3
_NEW_TOKENS = 16
_QUESTION, _ANSWER = "What is shown here?", "A test picture."


class VerificationError(RuntimeError):
    """The repository differs from the checkpoint."""


@dataclass(frozen=True)
class LogitComparison:
    """Our logits of one input against PyTorch's.

    Attributes:
        name: name of the input.
        difference: largest absolute difference.
        spread: standard deviation of our logits.
        divergence: Kullback-Leibler divergence in nats, averaged over positions.
        top_1: share of positions with the same most likely token.
        top_5: share of our five most likely tokens that are among PyTorch's five.
    """

    name: str
    difference: float
    spread: float
    divergence: float
    top_1: float
    top_5: float


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    Attributes:
        tensors: number of tensors that are equal bit for bit.
        reference: the implementation that computed logits and answers, or None.
        reason: why there is no reference.
        comparisons: one for each input.
        answers: number of equal greedy answers.
    """

    tensors: int
    reference: str | None = None
    reason: str | None = None
    comparisons: tuple[LogitComparison, ...] = ()
    answers: int = 0

    def summary(self) -> list[str]:
        """Returns lines for the user."""
        lines = [f"read back: {self.tensors:,} tensors, equal bit for bit"]
        if self.reference is None:
            return [*lines, f"logits not compared: {self.reason}"]
        lines.append(f"compared in float32 with {self.reference}")
        for found in self.comparisons:
            lines.append(
                f"  {found.name}: logits differ by at most {found.difference:.1e} (spread {found.spread:.2g}), KL"
                f" {found.divergence:.1e}, top-1 {found.top_1:.1%}, top-5 {found.top_5:.1%}"
            )
        return [*lines, f"  greedy answers: {self.answers} of {self.answers} equal"] if self.answers else lines


def verify(folder: Path, plan: ExportPlan, report: Callable[[str], None] = lambda line: None) -> Verification:
    """Compares a repository with the checkpoint it was made from.

    Args:
        folder: the repository.
        plan: its expected contents.
        report: called with the current step.

    Raises:
        VerificationError: they differ; the message says how.
    """
    report("reading the tensors back")
    _compare_tensors(folder, plan)
    found = Verification(len(plan.rules))
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return replace(found, reason="PyTorch and transformers are not installed")
    from solo.interop.reference_models import NoReferenceError, make_reference

    try:
        reference = make_reference(folder, plan)
    except NoReferenceError as error:
        return replace(found, reason=str(error))
    report(f"comparing logits with {reference.name}")
    ours = _our_model(plan)
    comparisons = tuple(
        _compare_logits(plan, name, messages, ours, reference) for name, messages in _inputs(plan, reference.has_images)
    )
    answers = _compare_answers(plan, ours, reference)
    return replace(found, reference=reference.name, comparisons=comparisons, answers=answers)


def _compare_tensors(folder: Path, plan: ExportPlan) -> None:
    with TensorReader(folder) as reader:
        if different := reader.keys() ^ plan.rules.keys():
            raise VerificationError(f"other tensors were written than planned: {sorted(different)}")
        for name in plan.rules:
            if reader.read(name).tobytes() != np.ascontiguousarray(plan.value(name)).tobytes():
                raise VerificationError(f"{name} was read back with other values than the checkpoint has")


def _our_model(plan: ExportPlan) -> Monolith:
    """Returns the model of the checkpoint with weights in the published dtype, computing in float32."""
    source = plan.source
    model = source.config.model.model_copy(update={"compute_dtype": "float32"})
    config = source.config.model_copy(update={"model": model})
    parameters = {}
    for path, spec in source.definition.specs.items():
        if spec.in_layers:
            values = np.stack([plan.trained(ParameterSlice(path, layer)) for layer in range(spec.shape[0])])
        else:
            values = plan.trained(ParameterSlice(path))
        padding = [(0, size - found) for size, found in zip(spec.shape, values.shape, strict=True)]
        parameters[path] = jnp.asarray(np.pad(values.astype(np.float32), padding))
    return Monolith(config, source.tokenizer, parameters)


def _inputs(plan: ExportPlan, with_images: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns conversations: text alone, with one image, with two images."""
    side = plan.config.image.patch_size

    def picture(seed: int, width: int, height: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
        pixels = (ramp + rng.integers(0, 36, (height, width, 3))).astype(np.uint8)
        return {"type": "image", "image": PillowImage.fromarray(pixels)}

    def conversation(*images: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": [*images, {"type": "text", "text": _QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]},
        ]

    found = [("text", conversation())]
    if with_images:
        one, other = picture(0, 3 * side, 2 * side), picture(1, side, 2 * side + 1)
        found += [("image and text", conversation(one)), ("two images and text", conversation(one, other))]
    return found


def _compare_logits(
    plan: ExportPlan, name: str, messages: list[dict[str, Any]], ours: Monolith, reference: Any
) -> LogitComparison:
    ids, theirs = reference.logits(messages)
    batch = ours.batch([messages], slot_multiple=64)  # fewer shapes to compile
    is_patch = ids == reference.placeholder_id
    num_patches, num_text = int(is_patch.sum()), int((~is_patch).sum())
    if not np.array_equal(ids[~is_patch], batch.text[0, :num_text]):
        raise VerificationError(f"{name}: the tokens differ: {batch.text[0, :num_text]} here, {ids[~is_patch]} there")
    by_slot = ours.logits(batch)[0]
    mine = np.empty((len(ids), by_slot.shape[-1]), np.float32)
    mine[is_patch], mine[~is_patch] = by_slot[:num_patches], by_slot[batch.patches.shape[1] :][:num_text]
    found = compare(name, mine, theirs)
    # transformers' own classes predict an appended row, with the mean of the other logits.
    appended = theirs.shape[1] - mine.shape[1]
    allowed = 0.0 if plan.layout.name == "native" else np.log1p(appended / mine.shape[1])
    if (
        not found.difference <= TOLERANCE * max(found.spread, 1.0)
        or found.top_1 < 1
        or found.divergence > allowed + TOLERANCE
    ):
        raise VerificationError(f"{name}: the logits are not those of the checkpoint: {found}")
    return found


def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> LogitComparison:
    """Compares logits [N, V] with logits [N, W], W >= V, where our model cannot predict the additional tokens."""
    count = ours.shape[1]
    p, q = _log_softmax(ours), _log_softmax(theirs)[:, :count]
    best = [np.argsort(-logits, axis=-1, kind="stable")[:, :5] for logits in (ours, theirs)]
    shared = [np.isin(a, b).mean() for a, b in zip(*best, strict=True)]
    with_others = np.pad(ours, ((0, 0), (0, theirs.shape[1] - count)), constant_values=-np.inf)
    return LogitComparison(
        name,
        difference=float(np.abs(ours - theirs[:, :count]).max()),
        spread=float(ours.std()),
        divergence=float((np.exp(p) * (p - q)).sum(-1).mean()),
        # Tokens that are equally likely to within the tolerance count as the same answer.
        top_1=float((np.take_along_axis(with_others, best[1][:, :1], 1)[:, 0] >= ours.max(-1) - TOLERANCE).mean()),
        top_5=float(np.mean(shared)),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _compare_answers(plan: ExportPlan, ours: Monolith, reference: Any) -> int:
    prompts = [messages[:1] for _, messages in _inputs(plan, reference.has_images)]
    mine = ours.generate(prompts, max_new_tokens=_NEW_TOKENS)
    # Our tokenizer decodes both, because the two libraries decode invalid UTF-8 differently.
    theirs = [ours.tokenizer.decode(reference.answer(prompt, _NEW_TOKENS)) for prompt in prompts]
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a != b:
            raise VerificationError(f"greedy answer {number} differs: {a!r} here, {b!r} there")
    return len(mine)
