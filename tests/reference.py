"""A plain reference model: one document in reading order, both experts on every slot, blended by modality.

It shares no code with `solo.model`, whose two-region model is tested against it. It computes one document at a time,
with a dense mask built from the reading order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from solo.config import ImageConfig, ModelConfig
from solo.data.rows.document import PATCH, Document


def random_document(rng: np.random.Generator, vocab: int, patch_size: int, parts: int = 5) -> Document:
    """Interleaved text runs (some supervised) and images with their delimiters, in reading order."""
    tokens, supervised, image, grids = [], [], [], []
    for number in range(parts):
        if rng.random() < 0.5:
            rows, columns = rng.integers(1, 4, 2)
            span = np.full(rows * (columns + 1) + 1, PATCH)
            span[0], span[columns + 1 :: columns + 1], span[-1] = 5, 6, 7
            inside = np.full(len(span), number)
            inside[[0, -1]] = -1
            tokens.append(span)
            supervised.append(np.zeros(len(span), bool))
            image.append(inside)
            grids.append(np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1))
        else:
            length = int(rng.integers(1, 7))
            tokens.append(rng.integers(10, vocab, length))
            supervised.append(np.full(length, rng.random() < 0.6))
            image.append(np.full(length, -1))
    all_tokens = np.concatenate(tokens).astype(np.int32)
    count = int((all_tokens == PATCH).sum())
    return Document(
        all_tokens,
        np.concatenate(supervised),
        np.concatenate(image).astype(np.int32),
        rng.integers(0, 256, (count, patch_size**2 * 3)).astype(np.uint8),
        np.concatenate([np.zeros((0, 2)), *grids]).astype(np.int32),
    )


def reading_mask(document: Document, mode: str) -> np.ndarray:
    """bool [N, N]: whether slot i sees slot j, by the rule itself."""
    size = len(document.tokens)
    mask = np.zeros((size, size), bool)
    for i in range(size):
        for j in range(size):
            mask[i, j] = j <= i
            same_image = document.image[i] >= 0 and document.image[i] == document.image[j]
            if mode == "bidirectional" and same_image:
                mask[i, j] = True
            if mode == "isolated" and document.tokens[i] == PATCH:
                mask[i, j] = i == j
    return mask


def forward(parameters: dict[str, jax.Array], config: ModelConfig, image: ImageConfig, document: Document) -> jax.Array:
    """Logits [N, V] of a document in reading order, float32."""
    is_patch = document.tokens == PATCH
    scale = np.repeat(np.asarray(image.std), image.patch_size**2) * 255.0
    shift = np.repeat(np.asarray(image.mean), image.patch_size**2) * 255.0
    pixels = np.zeros((len(is_patch), image.patch_size**2 * 3))
    pixels[is_patch] = (document.patches - shift) / scale
    text = parameters["text_embed"][np.where(is_patch, 0, document.tokens)]
    x = jnp.where(is_patch[:, None], jnp.asarray(pixels, jnp.float32) @ parameters["patch_embed/kernel"], text)
    mask = reading_mask(document, image.mask)
    for number in range(config.layers):
        layer = {path[7:]: value[number] for path, value in parameters.items() if path.startswith("layers/")}

        def blend(component: str, apply, x, layer=layer):
            """Apply both experts to every slot, and take the right one."""

            def of(region: str):
                shared = f"{component}/shared/"
                prefix = shared if any(path.startswith(shared) for path in layer) else f"{component}/{region}/"
                return apply({p[len(prefix) :]: v for p, v in layer.items() if p.startswith(prefix)}, x)

            def mix(a, b):
                weight = is_patch.astype(np.float32).reshape(-1, *[1] * (a.ndim - 1))
                return a * weight + b * (1 - weight)

            return jax.tree.map(mix, of("patches"), of("text"))

        normed = blend("attention_norm", lambda w, x: _norm(x, w["scale"], config.norm_eps), x)
        q, k, v = blend("qkv", lambda w, x: tuple(jnp.tensordot(x, w[n], 1) for n in "qkv"), normed)
        heads = _attend(_rotate(q, config), _rotate(k, config), v, mask)
        x = x + blend("out", lambda w, h: jnp.einsum("nhc,hcd->nd", h, w["kernel"]), heads)
        normed = blend("ffn_norm", lambda w, x: _norm(x, w["scale"], config.norm_eps), x)
        x = x + blend("ffn", lambda w, x: (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"], normed)
    x = _norm(x, parameters["final_norm/scale"], config.norm_eps)
    return x @ (parameters["head"] if "head" in parameters else parameters["text_embed"].T)


def loss_sum(
    parameters, config: ModelConfig, image: ImageConfig, document: Document, vocab: int
) -> tuple[jax.Array, int]:
    """The summed cross-entropy of the supervised tokens, each predicted from the slot before it, and their number.

    The softmax is over the first `vocab` logits, without the padding of the vocabulary.
    """
    wanted = [i for i in range(1, len(document.tokens)) if document.supervised[i]]
    if not wanted:
        return jnp.zeros(()), 0
    log_probabilities = jax.nn.log_softmax(forward(parameters, config, image, document)[:, :vocab], axis=-1)
    picked = [log_probabilities[i - 1, int(document.tokens[i])] for i in wanted]
    return -sum(picked), len(picked)


def _norm(x, scale, eps):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def _rotate(x_NHC, config: ModelConfig):
    half = x_NHC.shape[-1] // 2
    place = np.arange(len(x_NHC))[:, None] / config.rope_theta ** (np.arange(half) / half)
    turned = (x_NHC[..., :half] + 1j * x_NHC[..., half:]) * np.exp(1j * place)[:, None]
    return jnp.concatenate([turned.real, turned.imag], axis=-1).astype(jnp.float32)


def _attend(q_NHC, k_NKC, v_NKC, mask):
    group = q_NHC.shape[1] // k_NKC.shape[1]
    k, v = jnp.repeat(k_NKC, group, axis=1), jnp.repeat(v_NKC, group, axis=1)
    scores = jnp.einsum("nhc,mhc->hnm", q_NHC, k) / np.sqrt(q_NHC.shape[-1])
    return jnp.einsum("hnm,mhc->nhc", jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), v)
