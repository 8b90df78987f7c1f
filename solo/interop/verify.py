"""Whether an exported repository is what the checkpoint is: read back, loaded by PyTorch, asked the same.

What PyTorch computes is compared in float32 with our model on the same, rounded weights: they agree to the order of
rounding errors whatever dtype was written.
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
from solo.interop.layout import Part
from solo.interop.plan import Plan
from solo.interop.tensor_files import TensorReader

# Of logits, relative to their spread: what float32 arithmetic in another order may come to.
TOLERANCE = 1e-3
_NEW_TOKENS = 16
_QUESTION, _ANSWER = "What is shown here?", "A test picture."


class VerificationError(RuntimeError):
    """What was written is not what the checkpoint holds, or says something else."""


@dataclass(frozen=True)
class Agreement:
    """Logits of one input, ours against PyTorch's.

    name        of the input
    difference  largest, absolute
    spread      standard deviation of ours: what the difference is to be held against
    divergence  mean over positions of the Kullback-Leibler divergence, nats
    top_1       share of positions with the same likeliest token
    top_5       share of our five likeliest that are among its
    """

    name: str
    difference: float
    spread: float
    divergence: float
    top_1: float
    top_5: float


@dataclass(frozen=True)
class Verification:
    """What was compared, and how well it agrees. All of it passed, or there is none.

    tensors     read back, equal to the last bit
    oracle      what computed the logits and texts; None where nothing could
    reason      why there is no oracle
    agreements  one for each input
    answers     how many greedy answers were the same
    """

    tensors: int
    oracle: str | None = None
    reason: str | None = None
    agreements: tuple[Agreement, ...] = ()
    answers: int = 0

    def summary(self) -> list[str]:
        """A line each."""
        lines = [f"read back: {self.tensors:,} tensors, equal to the last bit"]
        if self.oracle is None:
            return [*lines, f"logits not compared: {self.reason}"]
        lines.append(f"compared in float32 with {self.oracle}")
        for found in self.agreements:
            lines.append(
                f"  {found.name}: logits differ by {found.difference:.1e} at most (spread {found.spread:.2g}), KL"
                f" {found.divergence:.1e}, top-1 {found.top_1:.1%}, top-5 {found.top_5:.1%}"
            )
        return [*lines, f"  greedy answers: {self.answers} of {self.answers} the same"] if self.answers else lines


def verify(folder: Path, plan: Plan, report: Callable[[str], None] = lambda line: None) -> Verification:
    """Compare a repository with what it was made from.

    Args:
        folder: the repository.
        plan: what it should hold.
        report: called with what is being done.

    Raises:
        VerificationError: they differ; the message says in what.
    """
    report("reading the tensors back")
    _compare_tensors(folder, plan)
    found = Verification(len(plan.rules))
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return replace(found, reason="PyTorch and transformers are not installed")
    from solo.interop.oracles import NoOracleError, make_oracle

    try:
        oracle = make_oracle(folder, plan)
    except NoOracleError as error:
        return replace(found, reason=str(error))
    report(f"comparing logits with {oracle.name}")
    ours = _our_model(plan)
    agreements = tuple(_agreement(name, messages, ours, oracle) for name, messages in _inputs(plan, oracle.sees_images))
    answers = _compare_answers(plan, ours, oracle)
    return replace(found, oracle=oracle.name, agreements=agreements, answers=answers)


def _compare_tensors(folder: Path, plan: Plan) -> None:
    with TensorReader(folder) as reader:
        if list(reader.keys() ^ plan.rules.keys()):
            raise VerificationError(f"other tensors were written: {sorted(reader.keys() ^ plan.rules.keys())}")
        for name in plan.rules:
            if reader.read(name).tobytes() != np.ascontiguousarray(plan.value(name)).tobytes():
                raise VerificationError(f"{name} was read back with other values than the checkpoint has")


def _our_model(plan: Plan) -> Monolith:
    """Our model on the published weights, in float32."""
    model = plan.config.model.model_copy(update={"compute_dtype": "float32"})
    config = plan.config.model_copy(update={"model": model})
    specs = plan.definition.specs
    parameters = {}
    for path, spec in specs.items():
        values = plan.read(Part(path)) if spec.axes[0] != "layers" else _stacked(plan, path, spec.shape[0])
        missing = [(0, size - found) for size, found in zip(spec.shape, values.shape, strict=True)]
        parameters[path] = jnp.asarray(np.pad(values.astype(np.float32), missing))
    return Monolith(config, plan.tokenizer, parameters)


def _stacked(plan: Plan, path: str, layers: int) -> np.ndarray:
    return np.stack([plan.read(Part(path, layer)) for layer in range(layers)])


def _inputs(plan: Plan, images: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    """Conversations: text alone, an image first, two images."""
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
    if images:
        one, other = picture(0, 3 * side, 2 * side), picture(1, side, 2 * side + 1)
        found += [("image and text", conversation(one)), ("two images and text", conversation(one, other))]
    return found


def _agreement(name: str, messages: list[dict[str, Any]], ours: Monolith, oracle: Any) -> Agreement:
    ids, theirs = oracle.logits(messages)
    batch = ours.batch([messages], slot_multiple=64)  # few shapes: every one is compiled
    is_patch = ids == oracle.placeholder_id
    num_patches, num_text = int(is_patch.sum()), int((~is_patch).sum())
    if not np.array_equal(ids[~is_patch], batch.text[0, :num_text]):
        raise VerificationError(f"{name}: the tokens differ: {batch.text[0, :num_text]} here, {ids[~is_patch]} there")
    by_slot = ours.logits(batch)[0]
    mine = np.empty((len(ids), by_slot.shape[-1]), np.float32)
    mine[is_patch], mine[~is_patch] = by_slot[:num_patches], by_slot[batch.patches.shape[1] :][:num_text]
    found = compare(name, mine, theirs[:, : mine.shape[1]])
    if not found.difference <= TOLERANCE * max(found.spread, 1.0) or found.top_1 < 1:
        raise VerificationError(f"{name}: the logits are not those of the checkpoint: {found}")
    return found


def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """Two sets of logits [N, V]."""
    p, q = _log_softmax(ours), _log_softmax(theirs)
    best = [np.argsort(-logits, axis=-1, kind="stable")[:, :5] for logits in (ours, theirs)]
    shared = [np.isin(a, b).mean() for a, b in zip(*best, strict=True)]
    return Agreement(
        name,
        difference=float(np.abs(ours - theirs).max()),
        spread=float(ours.std()),
        divergence=float((np.exp(p) * (p - q)).sum(-1).mean()),
        # Likeliest tokens that are as likely as each other to within the tolerance are the same answer.
        top_1=float((np.take_along_axis(ours, best[1][:, :1], 1)[:, 0] >= ours.max(-1) - TOLERANCE).mean()),
        top_5=float(np.mean(shared)),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _compare_answers(plan: Plan, ours: Monolith, oracle: Any) -> int:
    prompts = [messages[:1] for _, messages in _inputs(plan, oracle.sees_images)]
    mine = ours.generate(prompts, max_new_tokens=_NEW_TOKENS)
    # By our tokenizer: the two libraries write bytes that are no text differently.
    theirs = [ours.tokenizer.decode(oracle.answer(prompt, _NEW_TOKENS)) for prompt in prompts]
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a != b:
            raise VerificationError(f"greedy answer {number} differs: {a!r} here, {b!r} there")
    return len(mine)
