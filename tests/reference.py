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

# Heads in parts, with values narrower than queries (NEO 1.0), and with parts of one projection (NEO-unify).
GRID_PROJECTION = [
    {"axis": "time", "width": 8},
    {"axis": "row", "width": 4, "theta": 50.0, "projection": "grid"},
    {"axis": "column", "width": 6, "theta": 50.0, "projection": "grid"},
]
GRID_NORM = [
    {"axis": "time", "width": 4},
    {"axis": "row", "width": 2, "theta": 50.0, "norm": "grid"},
    {"axis": "column", "width": 2, "theta": 50.0, "norm": "grid"},
]
NEO: dict = {"head_parts": GRID_PROJECTION, "qk_norm": "rms", "value_dim": 6, "attention_scale": 0.4}
NEO_UNIFY: dict = {"head_parts": GRID_NORM, "qk_norm": "rms"}


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
    mask, places = reading_mask(document, image.mask), reading_places(document, config)
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
        q, k, v = blend("qkv", lambda w, x: _project(w, x, config), normed)
        heads = _attend(_rotate(q, places, config), _rotate(k, places, config), v, mask, config)
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


def reading_places(document: Document, config: ModelConfig) -> np.ndarray:
    """float [N, 3]: time, row and column. With parts of heads, an image takes one step of time, else a patch does."""
    if config.head_parts is None:
        return np.stack([np.arange(len(document.tokens))] * 3, axis=1).astype(float)
    found, time, grid = [], -1, iter(document.patch_grid.tolist())
    for number, (token, image) in enumerate(zip(document.tokens, document.image, strict=True)):
        time += image < 0 or number == 0 or document.image[number - 1] != image
        if image < 0:
            row = column = 0
        elif token == PATCH:
            row, column = next(grid)
        else:
            column += 1
        found.append([time, row, column])
    return np.asarray(found, float)


def _project(weights, x, config: ModelConfig):
    """Queries, keys and values, with the norms of the parts of a head."""

    def projected(letter: str):
        names = [name for name in (letter, f"{letter}_grid") if name in weights]
        return jnp.concatenate([jnp.tensordot(x, weights[name], 1) for name in names], axis=-1)

    def normed(letter: str):
        found, whole = [], projected(letter)
        names = [
            "norm_grid" if part.norm == "grid" else {"time": "norm"}.get(part.axis, f"norm_{part.axis}")
            for part in config.head_parts or ()
            for _ in range(part.width)
        ]
        for name in dict.fromkeys(names):
            part = whole[..., np.array(names) == name]
            found.append(_norm(part, weights[f"{letter}_{name}/scale"], config.norm_eps))
        return jnp.concatenate(found, axis=-1) if config.qk_norm == "rms" else whole

    return normed("q"), normed("k"), projected("v")


def _rotate(x_NHC, places_N3, config: ModelConfig):
    parts = [("time", x_NHC.shape[-1], config.rope_theta)]
    if config.head_parts is not None:
        parts = [(part.axis, part.width, part.theta or config.rope_theta) for part in config.head_parts]
    found, first = [], 0
    for axis, width, theta in parts:
        half, x = width // 2, x_NHC[..., first : first + width]
        place = places_N3[:, ["time", "row", "column"].index(axis), None] / theta ** (np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * place)[:, None]
        found += [turned.real, turned.imag]
        first += width
    return jnp.concatenate(found, axis=-1).astype(jnp.float32)


def _attend(q_NHC, k_NKC, v_NKC, mask, config: ModelConfig):
    group = q_NHC.shape[1] // k_NKC.shape[1]
    k, v = jnp.repeat(k_NKC, group, axis=1), jnp.repeat(v_NKC, group, axis=1)
    scores = jnp.einsum("nhc,mhc->hnm", q_NHC, k) * (config.attention_scale or config.dim_per_head**-0.5)
    return jnp.einsum("hnm,mhc->nhc", jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), v)
