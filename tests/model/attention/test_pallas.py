"""The kernels for TPU and GPU in interpret mode against dense attention; blocks that no query needs are never read."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solo.config import ImageConfig, SequenceConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row
from solo.model.attention import tpu, tpu_backward
from solo.model.attention.interval import interval_attention
from solo.model.attention.pallas import Sizes
from solo.model.attention.tiles import needed_blocks
from solo.model.attention.tpu import MOST_TILES
from solo.model.attention.tpu_backward import key_parts
from tests.model.attention.test_interval import Case, forward_and_gradients, random_intervals, random_tensors
from tests.reference import random_document

NAMES = ("out", "d_q", "d_k", "d_v")
KERNELS = ("pallas_tpu", "pallas_gpu")
KEY_BLOCK = 32
# Blocks of queries and keys that divide neither region; queries of a later chunk; text only, with fewer slots than a
# block; patches only.
ROWS = Case(rows=2, patches=37, text=45, queries=82, heads=6, key_heads=2, dim=4, block=16)
CONTINUED = Case(rows=3, patches=20, text=11, queries=5, heads=2, key_heads=2, dim=8, block=8)
TEXT = Case(rows=1, patches=0, text=5, queries=5, heads=2, key_heads=1, dim=4, block=8)
# Three blocks of patches and two of text: of parts of two blocks, the second has both.
STRADDLED = ROWS._replace(patches=70, queries=115)
# Keys of a power of two that values are not, and a scale of its own.
NARROW_VALUES = ROWS._replace(dim=20, value_dim=12, scale=0.3)
PATCHES = Case(rows=1, patches=29, text=0, queries=29, heads=2, key_heads=1, dim=4, block=16)


@functools.cache
def kernel(case: Case, name: str) -> Any:
    """(q, k, v, d_out, intervals) -> (out, d_q, d_k, d_v), compiled."""
    attention = functools.partial(
        interval_attention, num_patches=case.patches, implementation=name, block=case.block,
        key_block=KEY_BLOCK, interpret=True, scale=case.scale,
    )  # fmt: skip

    def run(q: Any, k: Any, v: Any, d_out: Any, intervals: Any) -> tuple:
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, intervals), q, k, v)
        return out, *pull(d_out)

    return jax.jit(run)


def assert_kernel_equals_dense(name: str, case: Case, tensors: tuple, intervals: np.ndarray) -> None:
    expected = forward_and_gradients(case, "dense")(*tensors, intervals)
    for what, a, b in zip(NAMES, kernel(case, name)(*tensors, intervals), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5, err_msg=what)


def packed_rows(rng: np.random.Generator, case: Case, mode: Any, window: int | None) -> np.ndarray:
    """`Batch.attend` of rows of packed documents and padding."""
    shape, image = RowShape(case.patches, case.text, case.text), ImageConfig(patch_size=1, max_side=8, mask=mode)

    def row() -> np.ndarray:
        documents: list = []
        room = np.array([case.patches, case.text])
        while True:
            document = random_document(rng, 64, patch_size=1, parts=int(rng.integers(1, 6)))
            patches = int((document.tokens < 0).sum())
            room -= [patches, len(document.tokens) - patches]
            if (room < 0).any():
                return assemble_row(documents, shape, image, 0, SequenceConfig(sliding_window=window)).attend
            documents.append((document, 0))

    return np.stack([row() for _ in range(case.rows)])[:, -case.queries :]


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    mode=st.sampled_from(["causal", "bidirectional", "prefix", "isolated"]),
    window=st.sampled_from([None, None, 8]),
)
def test_packed_documents(name: str, seed: int, mode: str, window: int | None) -> None:
    rng = np.random.default_rng(seed)
    assert_kernel_equals_dense(name, ROWS, random_tensors(rng, ROWS), packed_rows(rng, ROWS, mode, window))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("case", [ROWS, CONTINUED, TEXT, PATCHES, NARROW_VALUES])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_intervals(name: str, case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert_kernel_equals_dense(name, case, random_tensors(rng, case), random_intervals(rng, case))


@pytest.mark.parametrize("name", KERNELS)
def test_tiles_that_are_fully_visible(name: str) -> None:
    rng = np.random.default_rng(0)
    intervals = np.tile(np.int32([0, ROWS.patches, 0, ROWS.text]), (ROWS.rows, ROWS.queries, 1))
    assert_kernel_equals_dense(name, ROWS, random_tensors(rng, ROWS), intervals)


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_seen_is_zero_and_large_scores_do_not_overflow(name: str) -> None:
    rng = np.random.default_rng(0)
    intervals = packed_rows(rng, ROWS, "causal", None)
    intervals[0] = 0
    intervals[1, ::3] = (7, 7, 9, 4)
    q, *others = random_tensors(rng, ROWS)
    out, d_q, d_k, d_v = kernel(ROWS, name)(100 * q, *others, intervals)
    expected = forward_and_gradients(ROWS, "dense")(100 * q, *others, intervals)[0]
    np.testing.assert_allclose(out, expected, atol=1e-4)
    for x in (out[0], d_q[0], d_k[0], d_v[0], out[1, ::3], d_q[1, ::3]):
        assert (x == 0).all()
    assert all(np.isfinite(x).all() for x in (out, d_q, d_k, d_v))


@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_is_close_to_float32_and_unneeded_blocks_are_never_read(name: str) -> None:
    # Both regions are multiples of the blocks, so that whole blocks can be filled with NaN.
    case, rng = ROWS._replace(patches=64, text=64, queries=128, heads=2, key_heads=1), np.random.default_rng(0)
    intervals = packed_rows(rng, case, "bidirectional", None)
    for row in intervals:
        row[(row[:, 0] < 30) & (row[:, 1] > 0)] = 0
    needed = needed_blocks(intervals, num_patches=64, num_text=64, block=case.block, key_block=KEY_BLOCK).any(axis=1)
    poisoned = ~np.repeat(needed, KEY_BLOCK, axis=1)
    assert 0.2 < poisoned.mean() < 0.9
    q, k, v, d_out = (x.astype(jnp.bfloat16) for x in random_tensors(rng, case))
    clean = kernel(case, name)(q, k, v, d_out, intervals)
    nan_k, nan_v = (jnp.where(poisoned[:, :, None, None], jnp.nan, x) for x in (k, v))
    poisoned_results = kernel(case, name)(q, nan_k, nan_v, d_out, intervals)
    for what, a, b in zip(NAMES, poisoned_results, clean, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b, err_msg=what)
    wide = forward_and_gradients(case, "dense")(*(x.astype(jnp.float32) for x in (q, k, v, d_out)), intervals)
    for what, a, b in zip(NAMES, clean, wide, strict=True):
        assert np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b) < 6e-3, what


def test_unsupported_dtypes_and_sizes_are_refused() -> None:
    q, intervals = jnp.zeros((1, 6, 2, 4)), jnp.zeros((1, 6, 4), jnp.int32)
    run = functools.partial(interval_attention, num_patches=3, implementation="pallas_tpu", interpret=True)
    with pytest.raises(ValueError, match="float32 or all bfloat16"):
        run(q, q.astype(jnp.bfloat16), q, intervals)
    with pytest.raises(ValueError, match="float32 or all bfloat16"):
        run(*[q.astype(jnp.float16)] * 3, intervals)
    slots = int(MOST_TILES**0.5) + 1
    x, intervals = jax.ShapeDtypeStruct((1, slots, 2, 4), jnp.float32), jax.ShapeDtypeStruct((1, slots, 4), jnp.int32)
    with pytest.raises(ValueError, match="larger"):
        jax.eval_shape(functools.partial(run, block=1), x, x, x, intervals)


@pytest.mark.parametrize("case", [STRADDLED, CONTINUED, TEXT])
def test_gradients_of_keys_in_parts_equal_those_of_whole_rows(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose gradients do not fit into the vector memory. A part may hold keys of both regions, or unseen ones."""
    of_block = 2 * case.dim * (4 + 2 * 4) * KEY_BLOCK
    monkeypatch.setattr(tpu_backward, "VMEM_BYTES", tpu_backward.TILE_BYTES + 2 * of_block)
    slots, dims = (case.rows, case.queries, case.patches, case.text), (case.dim, case.dim)
    sizes = Sizes(*slots, case.block, KEY_BLOCK, *dims, scale=case.dim**-0.5, interpret=True)
    parts = key_parts(sizes, 4)
    assert [end - first for first, end in parts] == {STRADDLED: [2, 2, 1], CONTINUED: [2], TEXT: [1]}[case]
    kernel.cache_clear()
    rng = np.random.default_rng(0)
    for intervals in (random_intervals(rng, case), packed_rows(rng, case, "bidirectional", None)):
        assert_kernel_equals_dense("pallas_tpu", case, random_tensors(rng, case), intervals)
    kernel.cache_clear()


def test_a_row_of_131072_keys_has_parts_that_fit() -> None:
    sizes = Sizes(1, 16_384, 98_304, 32_768, 256, 256, 128, 128, scale=128**-0.5, interpret=False)
    parts = key_parts(sizes, 2)
    assert parts == [(first, min(first + 86, 512)) for first in range(0, 512, 86)]
    x, keys = jax.ShapeDtypeStruct((1, 16_384, 4, 128), jnp.bfloat16), (1, 131_072, 1, 128)
    run = functools.partial(interval_attention, num_patches=98_304, implementation="pallas_tpu", block=256)
    k, intervals = jax.ShapeDtypeStruct(keys, jnp.bfloat16), jax.ShapeDtypeStruct((1, 16_384, 4), jnp.int32)
    found = jax.eval_shape(jax.grad(lambda q, k, v, i: run(q, k, v, i).sum(), (0, 1, 2)), x, k, k, intervals)
    assert [each.shape for each in found] == [x.shape, keys, keys]


def test_rows_with_too_many_tiles_for_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    case, rng = ROWS._replace(rows=6), np.random.default_rng(0)
    of_row = 6 * 4  # blocks of 16 queries, and of 32 keys of each region
    monkeypatch.setattr(tpu, "MOST_TILES", 4 * of_row)
    kernel.cache_clear()
    run, tensors = kernel(case, "pallas_tpu"), random_tensors(rng, case)
    intervals = packed_rows(rng, case, "causal", None)
    jaxpr = str(jax.make_jaxpr(run)(*tensors, intervals))
    assert "length=2" in jaxpr  # three rows at a time, since four do not divide six
    assert_kernel_equals_dense("pallas_tpu", case, tensors, intervals)
    kernel.cache_clear()
