"""Measures how attention's time depends on the documents of a row: `python -m tests.benchmarks.attention`.

Prints median seconds of a forward and backward pass. Contestants run alternately, so that other load on the machine
affects all of them alike.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from solo.config import ModelConfig
from solo.model.attention.interval import interval_attention
from solo.model.attention.kernel import local_kernel
from solo.model.attention.tiles import needed_blocks


def intervals_of(documents: int, patches: int, text: int) -> np.ndarray:
    """Returns int32 [S, 4] for a row of equally long causal documents, each an image followed by text."""
    starts_P, starts_T = (np.arange(documents) * n // documents for n in (patches, text))
    ends_P, ends_T = np.append(starts_P[1:], patches), np.append(starts_T[1:], text)
    rows = []
    for p0, p1 in zip(starts_P, ends_P, strict=True):
        rows += [(p0, p + 1, 0, 0) for p in range(p0, p1)]
    for p0, p1, t0, t1 in zip(starts_P, ends_P, starts_T, ends_T, strict=True):
        rows += [(p0, p1, t0, t + 1) for t in range(t0, t1)]
    return np.array(rows, np.int32)


def forward_and_backward(
    num_patches: int, implementation: Any, block: int, key_block: int | None = None
) -> Callable[..., Any]:
    """Returns a compiled function (q, k, v, intervals) -> value and gradients."""
    attention = functools.partial(
        interval_attention, num_patches=num_patches, implementation=implementation, block=block, key_block=key_block
    )
    return jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(attention(*inputs) ** 2), argnums=(0, 1, 2)))


def medians(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each contestant; they run alternately."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def tensors(rows: int, slots: int, heads: int, key_heads: int, dim: int) -> tuple[np.ndarray, ...]:
    """Returns random queries, keys and values, float32 [B, S, H or K, C]."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(rows, slots, n, dim)).astype(np.float32) for n in (heads, key_heads, key_heads))


def compare_document_lengths(repeats: int) -> None:
    """Compares rows of eight documents with rows of one. The target is a third of the time or less."""
    for rows, patches, text, heads, key_heads, dim in ((4, 768, 256, 4, 2, 32), (1, 3072, 1024, 8, 4, 64)):
        inputs = tuple(map(jnp.asarray, tensors(rows, patches + text, heads, key_heads, dim)))
        print(f"\n{rows} rows of {patches} patches and {text} text tokens, {heads} heads of {dim}")
        for block in (32, 64, 128):
            attend = {n: np.tile(intervals_of(n, patches, text), (rows, 1, 1)) for n in (1, 8)}
            tiles = {
                n: int(needed_blocks(x, num_patches=patches, num_text=text, block=block).sum())
                for n, x in attend.items()
            }
            run = forward_and_backward(patches, "blocks", block)
            taken = medians({str(n): functools.partial(run, *inputs, x) for n, x in attend.items()}, repeats)
            print(
                f"  block {block:3}: one document {taken['1']:.4f} s, eight {taken['8']:.4f} s, "
                f"ratio {taken['8'] / taken['1']:.3f} (tiles {tiles[8]} / {tiles[1]} = {tiles[8] / tiles[1]:.3f})"
            )


def compare_with_dense(repeats: int) -> None:
    """Compares blocks with dense attention on rows like the quickstart's: about twenty short documents each."""
    patches, text = 768, 256
    inputs = (
        *map(jnp.asarray, tensors(4, patches + text, 4, 2, 32)),
        np.tile(intervals_of(20, patches, text), (4, 1, 1)),
    )
    contestants = {"dense": forward_and_backward(patches, "dense", 1)}
    contestants |= {f"blocks of {n}": forward_and_backward(patches, "blocks", n) for n in (16, 32, 64, 128)}
    taken = medians({name: functools.partial(run, *inputs) for name, run in contestants.items()}, repeats)
    print("\nquickstart: 4 rows of 20 documents in 1,024 slots, 4 heads of 32, 2 key heads")
    for name, seconds in taken.items():
        print(f"  {name:14} {seconds:.4f} s, {seconds / taken['dense']:.3f} of dense")


def compare_kernel_with_blocks(repeats: int) -> None:
    """Compares the kernel of a TPU or GPU with plain JAX, in bfloat16, on rows of one and of several documents."""
    kernel = local_kernel(ModelConfig(width=4096, layers=1, heads=32, kv_heads=8, ffn_width=1))
    for patches, text, heads, documents in ((3072, 1024, 16, 4), (3072, 1024, 32, 1), (0, 8192, 32, 1)):
        inputs = (jnp.asarray(x, jnp.bfloat16) for x in tensors(2, patches + text, heads, 8, 128))
        attend = np.tile(intervals_of(documents, patches, text), (2, 1, 1))
        inputs = (*inputs, jnp.asarray(attend))
        contestants = {
            kernel.implementation: forward_and_backward(patches, kernel.implementation, kernel.block, kernel.key_block),
            "blocks": forward_and_backward(patches, "blocks", 128),
        }
        taken = medians({name: functools.partial(run, *inputs) for name, run in contestants.items()}, repeats)
        # Each pair takes two products of C numbers forward and five backward; a multiply-add is two operations.
        flops = 14 * 128 * heads * int((attend[..., 1] - attend[..., 0] + attend[..., 3] - attend[..., 2]).sum())
        print(f"\n2 rows of {patches} patches and {text} text tokens in {documents} documents, {heads} heads of 128")
        for name, seconds in taken.items():
            print(f"  {name:10} {1e3 * seconds:8.3f} ms, {flops / seconds / 1e12:.0f} TFLOP/s of visible pairs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    if jax.default_backend() != "cpu":
        compare_kernel_with_blocks(repeats)
    compare_document_lengths(repeats)
    compare_with_dense(repeats)
