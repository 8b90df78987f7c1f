"""Matrix-product FLOPs of a step, counted from shapes: what the compiled step does, or what of it was useful.

A product of [m, k] and [k, n] counts 2 m k n. Norms, softmax and the optimizer are left out (below 2% at any
size worth counting; the test against the compiler's own count keeps this honest).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

from solo.model.parameters import ModelDefinition


@dataclass(frozen=True)
class Work:
    """How many of each thing a step computes.

    patches, text   slots of each region
    targets         slots whose logits are computed
    pairs           query-key pairs that attention computes, in one layer
    """

    patches: int
    text: int
    targets: int
    pairs: int


def step_flops(definition: ModelDefinition, work: Work, trained: frozenset[str] | None = None) -> dict[str, int]:
    """FLOPs of one training step by part: forward, gradient of inputs, gradient of trained weights.

    Parts: patch_embed, qkv, out, ffn_patches, ffn_text, attention, head. `trained` holds the paths of the
    trained parameters; None means all. Recomputation (`model.remat`) is not counted: it is no useful work.
    """
    config, specs = definition.config, definition.specs
    found = dict.fromkeys(("patch_embed", "qkv", "out", "ffn_patches", "ffn_text", "attention", "head"), 0)
    for path, spec in specs.items():
        for part, uses in _uses(path, definition, work).items():
            products = 1 + (path not in _FIRST) + (trained is None or path in trained)
            found[part] += 2 * int(uses * prod(spec.shape)) * products
    if config.tied_head:
        trains_head = trained is None or "text_embed" in trained
        found["head"] += 2 * work.targets * prod(specs["text_embed"].shape) * (2 + trains_head)
    # Scores and values forward; two products each backward.
    found["attention"] = 3 * 2 * 2 * config.layers * config.heads * config.dim_per_head * work.pairs
    return found


# Matrices whose input has no gradient: the pixels.
_FIRST = ("patch_embed/kernel", "patch_embed/inner/kernel")
_FFN = ("gate", "up", "down", "router")


def _uses(path: str, definition: ModelDefinition, work: Work) -> dict[str, Fraction]:
    """Part -> how often a matrix is applied as a whole; empty for what is no matrix."""
    *parents, name = path.split("/")
    patches, text = Fraction(work.patches), Fraction(work.text)
    if path == "head":
        return {"head": Fraction(work.targets)}
    if parents[:1] == ["patch_embed"]:
        inner = definition.config.patch_embed.inner_size
        count = (definition.image.patch_size // inner) ** 2 if parents[1:] == ["inner"] and inner else 1
        return {"patch_embed": patches * count} if name == "kernel" else {}
    part, region = [*parents, "", "", ""][1:3]
    slots = {"patches": patches, "text": text, "shared": patches + text}.get(region, Fraction(0))
    if (part, name) in (("qkv", "q"), ("qkv", "k"), ("qkv", "v"), ("out", "kernel")):
        return {part: slots}
    if part != "ffn" or name not in _FFN:
        return {}
    if region == "moe":
        learned = definition.config.moe
        share = Fraction(1) if name == "router" else Fraction(learned.top_k, learned.count)
        return {"ffn_patches": patches * share, "ffn_text": text * share}
    both = {"ffn_patches": patches, "ffn_text": text}
    return both if region == "shared" else {f"ffn_{region}": slots}
