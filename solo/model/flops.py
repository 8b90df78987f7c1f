"""Matrix-product FLOPs of a step, counted from shapes: what the compiled step does, or what of it was useful.

A product of [m, k] and [k, n] counts 2 m k n. Norms, softmax and the optimizer are left out (below 2% at any
size worth counting; the test against the compiler's own count keeps this honest).
"""

from __future__ import annotations

from dataclasses import dataclass

from solo.model.parameters import ModelDefinition, ParameterSpec


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
        part, slots = _where(path, work)
        if not part:
            continue
        for name, count in slots.items():
            products = 1 + (path != "patch_embed") + (trained is None or path in trained)
            found[part if part != "ffn" else f"ffn_{name}"] += 2 * count * _weights(spec) * products
    if config.tied_head:
        trains_head = trained is None or "text_embed" in trained
        found["head"] += 2 * work.targets * _weights(specs["text_embed"]) * (2 + trains_head)
    # Scores and values forward; two products each backward.
    found["attention"] = 3 * 2 * 2 * config.layers * config.heads * config.dim_per_head * work.pairs
    return found


def _where(path: str, work: Work) -> tuple[str, dict[str, int]]:
    """The part a matrix belongs to, and the slots it is applied to, by region."""
    if path == "patch_embed":
        return path, {"patches": work.patches}
    if path == "head":
        return path, {"text": work.targets}
    _, part, *rest = [*path.split("/"), ""]
    if part not in ("qkv", "out", "ffn"):
        return "", {}
    both = {"patches": work.patches, "text": work.text}
    return part, both if rest[0] == "shared" else {rest[0]: both[rest[0]]}


def _weights(spec: ParameterSpec) -> int:
    size = 1
    for dimension in spec.shape:
        size *= dimension
    return size
