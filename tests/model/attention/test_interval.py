"""Interval attention: dense against loops over documents in reading order, blocks against dense."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from solo.model.attention.interval import interval_attention
from solo.model.attention.reading_order import Grid, Order, sort_into_tiles
from solo.model.attention.tiles import SAVED, needed_blocks

TEXT = -1
MODES = ("causal", "bidirectional", "isolated")


class Case(NamedTuple):
    """Static sizes; the queries are the last `queries` slots. By default, values are as wide as keys."""

    rows: int
    patches: int
    text: int
    queries: int
    heads: int
    key_heads: int
    dim: int
    block: int
    value_dim: int | None = None
    scale: float | None = None


CASES = [
    Case(rows=2, patches=48, text=32, queries=80, heads=4, key_heads=2, dim=8, block=8),
    Case(rows=3, patches=37, text=19, queries=56, heads=6, key_heads=2, dim=4, block=16),
    Case(rows=2, patches=45, text=30, queries=41, heads=2, key_heads=2, dim=8, block=16),
    Case(rows=9, patches=20, text=11, queries=1, heads=2, key_heads=1, dim=8, block=8),
    Case(rows=1, patches=0, text=29, queries=29, heads=2, key_heads=1, dim=4, block=8),
    Case(rows=2, patches=20, text=22, queries=42, heads=4, key_heads=2, dim=8, block=16, value_dim=3, scale=0.9),
    Case(rows=1, patches=29, text=0, queries=29, heads=2, key_heads=1, dim=4, block=64),
]


# --- Documents in reading order: an independent description of who sees whom ---


def random_document(rng: np.random.Generator, length: int) -> list[int]:
    """Elements in reading order: TEXT, or the number of the image that the patch belongs to.

    A separator, which is text, may be between the patches of an image.
    """
    elements: list[int] = []
    image = 0
    while len(elements) < length:
        if rng.random() < 0.5:
            elements += [TEXT] * int(rng.integers(1, 6))
        else:
            for _ in range(rng.integers(1, 4)):
                elements += [image] * int(rng.integers(1, 6)) + [TEXT] * int(rng.integers(2))
            image += 1
    return elements[:length]


def sees(document: list[int], query: int, key: int, mode: str) -> bool:
    """Whether a query sees a key, in reading order."""
    image = document[query]
    if mode == "isolated" and image != TEXT:
        return query == key
    return key <= query or (mode == "bidirectional" and image != TEXT and document[key] == image)


def pack(documents: list[list[int]], patches: int, text: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """One row: its intervals [S, 4], and its mask bool [S, S], computed independently with `sees`."""
    intervals = np.zeros((patches + text, 4), np.int32)
    mask = np.zeros((patches + text, patches + text), bool)
    first_patch = first_text = 0
    for document in documents:
        is_text = np.array(document) == TEXT
        patch_count, text_count = np.cumsum(~is_text), np.cumsum(is_text)
        slots = np.where(is_text, patches + first_text + text_count - 1, first_patch + patch_count - 1)
        for i, slot in enumerate(slots):
            for j, key in enumerate(slots):
                mask[slot, key] = sees(document, i, j, mode)
            last = i
            if mode == "bidirectional" and not is_text[i]:
                last = max(j for j, image in enumerate(document) if image == document[i])
            patch_end, text_end = first_patch + patch_count[last], first_text + text_count[i]
            intervals[slot] = (first_patch, patch_end, first_text, text_end)
            if mode == "isolated" and not is_text[i]:
                intervals[slot] = (slot, slot + 1, 0, 0)
        first_patch, first_text = first_patch + patch_count[-1], first_text + text_count[-1]
    return intervals, mask


def random_rows(rng: np.random.Generator, case: Case, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of documents and padding: intervals [B, S, 4] and masks [B, S, R] of the queries."""
    rows = []
    for _ in range(case.rows):
        documents: list[list[int]] = []
        patches, text = case.patches, case.text
        while patches + text > 0:
            document = random_document(rng, int(rng.integers(1, 40)))
            fitting = [e for e in document if (e == TEXT and text) or (e != TEXT and patches)]
            patches -= sum(e != TEXT for e in fitting)
            text -= fitting.count(TEXT)
            if patches < 0 or text < 0:
                break
            if fitting:
                documents.append(fitting)
        rows.append(pack(documents, case.patches, case.text, mode))
    return tuple(np.stack(x)[:, -case.queries :] for x in zip(*rows, strict=True))  # type: ignore[return-value]


def random_intervals(rng: np.random.Generator, case: Case) -> np.ndarray:
    """Arbitrary intervals, including empty, reversed and out-of-range ones."""
    high = np.array([case.patches, case.patches, case.text, case.text]) + 3
    return rng.integers(-3, high, (case.rows, case.queries, 4)).astype(np.int32)


def random_tensors(rng: np.random.Generator, case: Case) -> tuple[jax.Array, ...]:
    """Queries, keys, values and a gradient of the output."""
    queries = (case.rows, case.queries, case.heads, case.dim)
    keys = (case.rows, case.patches + case.text, case.key_heads, case.dim)
    values, outputs = ((*shape[:3], case.value_dim or case.dim) for shape in (keys, queries))
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (queries, keys, values, outputs))


@functools.cache
def forward_and_gradients(case: Case, implementation: str) -> Any:
    """(q, k, v, d_out, intervals) -> (out, d_q, d_k, d_v), compiled."""
    attention = functools.partial(
        interval_attention, num_patches=case.patches, implementation=implementation, block=case.block, scale=case.scale
    )

    def run(q: Any, k: Any, v: Any, d_out: Any, intervals: Any) -> tuple:
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, intervals), q, k, v)
        return out, *pull(d_out)

    return jax.jit(run)


def assert_blocks_equal_dense(case: Case, tensors: tuple, intervals: np.ndarray) -> None:
    blocks = forward_and_gradients(case, "blocks")(*tensors, intervals)
    dense = forward_and_gradients(case, "dense")(*tensors, intervals)
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), blocks, dense, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=name)


def loops(q: Any, k: Any, v: Any, mask_BSR: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Attention for one query and one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, s, h in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(mask_BSR[b, s])
        if len(seen):
            head = h // (q.shape[2] // k.shape[2])
            weights = np.exp(k[b, seen, head] @ q[b, s, h] * (scale or q.shape[3] ** -0.5))
            out[b, s, h] = weights @ v[b, seen, head] / weights.sum()
    return out


# --- Values ---


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), mode=st.sampled_from(MODES))
def test_documents_in_reading_order(case: Case, seed: int, mode: str) -> None:
    rng = np.random.default_rng(seed)
    intervals, mask = random_rows(rng, case, mode)
    q, k, v, d_out = random_tensors(rng, case)
    dense = forward_and_gradients(case, "dense")(q, k, v, d_out, intervals)[0]
    np.testing.assert_allclose(dense, loops(q, k, v, mask, case.scale), atol=1e-5, rtol=1e-5)
    assert_blocks_equal_dense(case, (q, k, v, d_out), intervals)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_intervals(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert_blocks_equal_dense(case, random_tensors(rng, case), random_intervals(rng, case))


def test_large_scores_do_not_overflow() -> None:
    case, rng = CASES[0], np.random.default_rng(0)
    q, *others = random_tensors(rng, case)
    tensors = (100 * q, *others)
    intervals, mask = random_rows(rng, case, "causal")
    out, *gradients = forward_and_gradients(case, "blocks")(*tensors, intervals)
    np.testing.assert_allclose(out, forward_and_gradients(case, "dense")(*tensors, intervals)[0], atol=1e-4)
    np.testing.assert_allclose(out, loops(*tensors[:3], mask), atol=1e-3)
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("implementation", ["blocks", "dense"])
def test_nothing_seen_is_zero(implementation: str) -> None:
    case, rng = CASES[0], np.random.default_rng(0)
    intervals, mask = random_rows(rng, case, "causal")
    blind = ~mask.any(axis=-1)
    blind |= rng.random(blind.shape) < 0.5
    blind[0] = True
    intervals[blind] = (7, 7, 9, 4)
    out, d_q, d_k, d_v = forward_and_gradients(case, implementation)(*random_tensors(rng, case), intervals)
    assert (out[blind] == 0).all()
    assert (d_q[blind] == 0).all()
    assert (out[~blind] != 0).any(axis=-1).all()
    assert (d_k[0] == 0).all()
    assert (d_v[0] == 0).all()
    assert all(np.isfinite(x).all() for x in (out, d_q, d_k, d_v))


@pytest.mark.parametrize("implementation", ["blocks", "dense"])
def test_bfloat16_is_close_to_float32(implementation: str) -> None:
    case, rng = CASES[0], np.random.default_rng(0)
    intervals, _ = random_rows(rng, case, "bidirectional")
    q, *others = (x.astype(jnp.bfloat16) for x in random_tensors(rng, case))
    narrow = (3 * q, *others)  # with scores large enough for rounding to matter
    wide = tuple(x.astype(jnp.float32) for x in narrow)
    run = forward_and_gradients(case, implementation)
    # The error would be twice as large if a product or a sum were rounded to bfloat16.
    for a, b, limit in zip(run(*narrow, intervals), run(*wide, intervals), (3e-3, 6e-3, 6e-3, 3e-3), strict=True):
        assert a.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b) < limit


# --- Skipping ---


@pytest.mark.parametrize("case", CASES)
def test_needed_blocks_are_exactly_those_with_visible_pairs(case: Case) -> None:
    rng = np.random.default_rng(0)
    intervals, mask = random_rows(rng, case, "bidirectional")
    needed = needed_blocks(intervals, num_patches=case.patches, num_text=case.text, block=case.block)

    def any_of(x: np.ndarray, axis: int) -> np.ndarray:
        starts = np.arange(0, x.shape[axis], case.block)
        return np.logical_or.reduceat(x, starts, axis=axis) if len(starts) else x

    by_query = any_of(mask, 1)
    expected = np.concatenate([any_of(by_query[..., : case.patches], 2), any_of(by_query[..., case.patches :], 2)], -1)
    np.testing.assert_array_equal(needed, expected)


def test_eight_short_documents_need_a_quarter_of_the_blocks_of_a_long_one() -> None:
    document = [0] * 48 + [TEXT] * 16

    def count(documents: list[list[int]]) -> int:
        intervals, _ = pack(documents, 8 * 48, 8 * 16, "causal")
        return int(needed_blocks(intervals[None], num_patches=8 * 48, num_text=8 * 16, block=16).sum())

    assert 4 * count([document] * 8) <= count([[0] * 8 * 48 + [TEXT] * 8 * 16])


def test_blocks_that_no_query_needs_are_never_read() -> None:
    case, rng = CASES[0]._replace(rows=3), np.random.default_rng(0)
    intervals, _ = random_rows(rng, case, "causal")
    for row in intervals:  # No query sees some of the patches and text in the middle; one row sees nothing.
        row[(row[:, 0] < 30) & (row[:, 1] > 10)] = 0
        row[(row[:, 2] < 20) & (row[:, 3] > 10)] = 0
    intervals[2] = 0
    tiles = sort_into_tiles(grid_of(case), intervals)
    poisoned = ~np.repeat(tiles.needed.any(axis=1), case.block, axis=1)
    poisoned = np.asarray(tiles.keys.unsort(poisoned))
    assert 0.3 < poisoned[:2].mean() < 0.9
    q, k, v, d_out = random_tensors(rng, case)
    run = forward_and_gradients(case, "blocks")
    clean = run(q, k, v, d_out, intervals)
    k, v = (jnp.where(poisoned[:, :, None, None], jnp.nan, x) for x in (k, v))
    for a, b in zip(run(q, k, v, d_out, intervals), clean, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(forward_and_gradients(case, "dense")(q, k, v, d_out, intervals)[0]).any()


def grid_of(case: Case) -> Grid:
    return Grid(case.rows, case.queries, case.patches, case.text, case.block)


@pytest.mark.parametrize("case", CASES[:3])
def test_tiles_are_needed_exactly_where_pairs_are_visible(case: Case) -> None:
    rng = np.random.default_rng(0)
    intervals, mask = random_rows(rng, case, "bidirectional")
    tiles = sort_into_tiles(grid_of(case), intervals)

    def in_blocks(x: np.ndarray, order: Order, axis: int) -> np.ndarray:
        x = np.take_along_axis(x, np.expand_dims(np.asarray(order.slots), 3 - axis), axis)
        return np.logical_or.reduceat(x, np.arange(0, x.shape[axis], case.block), axis=axis)

    expected = in_blocks(in_blocks(mask, tiles.queries, 1), tiles.keys, 2)
    assert not tiles.needed[..., -1].any()
    np.testing.assert_array_equal(tiles.needed[..., :-1], expected)


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_documents_need_tiles_along_the_diagonal_alone(mode: str) -> None:
    document = [0] * 24 + [TEXT] * 8
    intervals, _ = pack([document] * 8, 8 * 24, 8 * 8, mode)
    tiles = sort_into_tiles(Grid(1, 256, 192, 64, 16), intervals[None])
    # Two blocks of 16 per document: the second sees the first, and patches of one image see each other.
    assert tiles.needed.sum() == 8 * (3 if mode == "causal" else 4)


def test_blocks_allocate_no_array_of_queries_by_keys() -> None:
    case = Case(rows=1, patches=512, text=512, queries=1024, heads=1, key_heads=1, dim=4, block=16)
    inputs = (*random_tensors(np.random.default_rng(0), case), np.zeros((1, 1024, 4), np.int32))

    def temporary_bytes(implementation: str) -> int:
        compiled = forward_and_gradients(case, implementation).lower(*inputs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * 1024 * 1024
    assert temporary_bytes("blocks") < scores / 4
    assert temporary_bytes("dense") > scores


# --- Transformations ---


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.save_only_these_names(SAVED)])
def test_under_checkpoint_and_scan(policy: Any) -> None:
    case, rng = CASES[1], np.random.default_rng(0)
    intervals, _ = random_rows(rng, case, "causal")
    q, k, v, _ = random_tensors(rng, case)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str) -> jax.Array:
        @functools.partial(jax.checkpoint, policy=policy)
        def layer(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
            out = interval_attention(
                x * scale, k, v, intervals, num_patches=case.patches, implementation=implementation, block=case.block
            )
            return x + out, None

        return jnp.sum(jax.lax.scan(layer, q, jnp.array([1.0, 0.5, 2.0]))[0] ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    for a, b in zip(gradients(q, k, v, "blocks"), gradients(q, k, v, "dense"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


def test_a_policy_can_avoid_the_second_forward_pass() -> None:
    case = CASES[0]
    inputs = (*random_tensors(np.random.default_rng(0), case)[:3], np.zeros((2, 80, 4), np.int32))

    def loops_with(policy: Any) -> int:
        def loss(q: Any, k: Any, v: Any, intervals: Any) -> jax.Array:
            return interval_attention(q, k, v, intervals, num_patches=case.patches, block=case.block).sum()

        run = jax.jit(jax.value_and_grad(jax.checkpoint(loss, policy=policy)))
        return run.lower(*inputs).compile().as_text().count(" while(")

    saved = jax.checkpoint_policies.save_only_these_names(SAVED)
    assert loops_with(saved) < loops_with(None)


def test_inside_shard_map() -> None:
    case, rng = CASES[1]._replace(rows=8), np.random.default_rng(0)
    intervals, _ = random_rows(rng, case, "causal")
    tensors = random_tensors(rng, case)
    devices = next(n for n in (8, 4, 2, 1) if n <= jax.device_count())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("data")
    sharded = jax.shard_map(forward_and_gradients(case, "blocks"), mesh=mesh, in_specs=rows, out_specs=rows)
    expected = forward_and_gradients(case, "dense")(*tensors, intervals)
    for a, b in zip(jax.jit(sharded)(*tensors, intervals), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


# --- Arguments ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.zeros((1, 6, 3, 4))}, "do not fit"),
        ({"v": jnp.zeros((1, 5, 2, 4))}, "do not fit"),
        ({"v": jnp.zeros((1, 6, 2, 5))}, "do not fit"),
        ({"intervals": jnp.zeros((1, 5, 4), jnp.int32)}, "intervals"),
        ({"intervals": jnp.zeros((1, 6, 4))}, "intervals"),
        ({"num_patches": 7}, "num_patches"),
        ({"implementation": "flash"}, "implementation"),
        ({"block": 0}, "block"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"q": jnp.zeros((1, 6, 4, 4)), "k": jnp.zeros((1, 6, 2, 4))}
    arguments |= {"v": arguments["k"], "intervals": jnp.zeros((1, 6, 4), jnp.int32), "num_patches": 3} | change
    q, k, v, intervals = (arguments.pop(name) for name in ("q", "k", "v", "intervals"))
    with pytest.raises(ValueError, match=message):
        interval_attention(q, k, v, intervals, **arguments)
