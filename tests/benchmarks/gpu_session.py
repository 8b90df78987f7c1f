"""All measurements that need a GPU, in ten minutes: `python -m tests.benchmarks.gpu_session [--out FOLDER] [PART ...]`.

    rates      products by size and type, the memory's bandwidth, and the time of a small kernel
    attention  the kernels of this project against cuDNN's, forward and backward, and against dense attention
    small      steps of the configs of 30M and 150M, layers unrolled and in a loop
    large      a step of the 2B model with the setting that the planner estimates to be the fastest on an H200
    eight      steps with products in eight bits

Every part runs in a process of its own with a time limit, so that the others survive its failure. `session.json` has
all figures, `session.md` a table of them; both are rewritten after every part. `python -m tests.benchmarks.gpu_fit
--measured session.json` fits the planner's time model to the steps. On a CPU, everything runs with tiny sizes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Parts follow each other: memory that one does not use must not be held.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from solo.batch import Batch
from solo.chips import CHIPS, chip_of
from solo.config import Config, MeshConfig, SafetyConfig, StageConfig
from solo.data.planning.row_shape import RowShape
from solo.machines import Machine
from solo.model.attention.interval import interval_attention
from solo.model.attention.kernel import Kernel, choose_kernel
from solo.model.parameters import ModelDefinition
from solo.planning.estimate import StepTime
from solo.planning.flops import planned_flops
from solo.planning.gpu_time import Rates, gpu_step_time, product_flops
from solo.planning.hlo import parse_module
from solo.planning.kernels import Product
from solo.planning.program import abstract_batch
from solo.planning.rows import Document, Rows, row_intervals
from solo.sharding.compiling import compile_lowered
from solo.sharding.mesh import device_batch, make_mesh
from solo.training.step import make_stage
from tests.benchmarks.attention import intervals_of, tensors
from tests.benchmarks.gpu_fit import LOOP, PATCHES, TEXT, case

ON_GPU = jax.default_backend() == "gpu"
# Part -> seconds that it may take. Together they are below ten minutes.
LIMITS = {"rates": 70, "attention": 90, "small": 130, "large": 170, "eight": 120}
# The setting with the shortest estimate for the 2B model on one H200, of those in docs/benchmarks.md.
PREFERRED = ("model.remat=projections",)
# m, n, k of products of the configs of 30M and 2B, and a large square.
PRODUCTS = (
    (16368, 512, 1408),
    (12288, 2816, 512),
    (12288, 8192, 2048),
    (12288, 2048, 8192),
    (2048, 8192, 12288),
    (4080, 8192, 2048),
    (8192, 8192, 8192),
)
TYPES = {"bf16": jnp.bfloat16, "f8e4m3fn": jnp.float8_e4m3fn, "s8": jnp.int8}
# Slots, heads, key heads, size of a head, documents of a row. Two rows each.
ATTENTION = ((8192, 32, 8, 128, 1), (4096, 16, 8, 128, 4), (2048, 16, 8, 128, 1), (2048, 8, 4, 64, 1))
REPEATS = 10 if ON_GPU else 1
# On a CPU, the configs shrink to this.
TINY = (
    *("model.width=64", "model.layers=2", "model.heads=4", "model.kv_heads=2", "model.ffn_width=64"),
    *("model.vocab_size=128", "model.frozen_embedding_id=null", "model.attention_block=32"),
)
TINY_ROWS = 1

Row = dict[str, Any]


def median_seconds(run: Callable[[], Any], repeats: int = REPEATS, inner: int = 1) -> float:
    """Returns the median seconds of a call, after a first one. `inner` calls are started before each is awaited."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(inner):
            found = run()
        jax.block_until_ready(found)
        times.append((time.perf_counter() - start) / inner)
    return statistics.median(times)


# --- Parts ---


def rates() -> Iterator[Row]:
    """Yields the rates of products, of memory, and of small kernels, with what the planner assumes."""
    chip = chip_of(jax.devices()[0].device_kind) or CHIPS["h200"]
    cores = (chip.gpu_target or {"core_count": 1})["core_count"]
    sums = {"bf16": jnp.bfloat16, "s8": jnp.int32, "f8e4m3fn": jnp.float32}
    for name, dtype in TYPES.items():
        run = jax.jit(functools.partial(jnp.matmul, preferred_element_type=sums[name]))
        for m, n, k in PRODUCTS if ON_GPU else ((64, 32, 16),):
            left, right = (jnp.ones(shape, jnp.float32).astype(dtype) for shape in ((m, k), (k, n)))
            seconds = median_seconds(functools.partial(run, left, right), inner=10)
            product = Product(1, m, n, k, name)
            expected = product_flops(product, cores) / ((chip.peak_flops or 1e12) * Rates().products) + Rates().launch
            yield {
                "what": f"{name} {m} x {k} x {n}",
                "ms": 1e3 * seconds,
                "TFLOP/s": product.flops / seconds / 1e12,
                "estimate ms": 1e3 * expected,
            }
    for size in (2**30, 2**25) if ON_GPU else (2**16,):
        x = jnp.ones(size // 4, jnp.float32)
        seconds = median_seconds(functools.partial(jax.jit(lambda x: x * 2 + 1), x), inner=10)
        yield {"what": f"copy of {size / 2**20:.0f} MiB", "ms": 1e3 * seconds, "GB/s": 2 * size / seconds / 1e9}
    run, count = jax.jit(_chain, static_argnums=0), 200 if ON_GPU else 4
    seconds = median_seconds(functools.partial(run, count, jnp.ones((256, 256)))) / count
    yield {"what": "small kernel", "ms": 1e3 * seconds, "estimate ms": 1e3 * Rates().launch}


def _chain(count: int, x: jax.Array) -> jax.Array:
    """Transposes that are not fused."""
    for _ in range(count):
        x = jax.lax.optimization_barrier(x.T * 1.0001)
    return x


def attention() -> Iterator[Row]:
    """Yields forward and backward rates in FLOP/s of visible pairs, and the largest errors against dense attention."""
    for slots, heads, key_heads, dim, documents in ATTENTION if ON_GPU else ((256, 4, 2, 16, 2),):
        inputs = tuple(jnp.asarray(x, jnp.bfloat16) for x in tensors(2, slots, heads, key_heads, dim))
        attend = jnp.asarray(np.tile(intervals_of(documents, 0, slots), (2, 1, 1)))
        pairs = int((attend[..., 3] - attend[..., 2]).sum())
        for name, attend_with in _implementations(attend, heads, key_heads, dim, documents).items():
            row = {"what": f"{name}: 2 x {slots} slots, {heads} heads of {dim}, {documents} documents"}
            try:
                forward = jax.jit(attend_with)
                both = jax.jit(lambda *x, f=attend_with: jax.vjp(f, *x)[1](x[0]))
                first, second = (median_seconds(functools.partial(run, *inputs)) for run in (forward, both))
            except Exception as error:  # one implementation must not end the others
                yield {**row, "error": str(error).splitlines()[0][:200]}
                continue
            row |= {"forward ms": 1e3 * first, "backward ms": 1e3 * (second - first)}
            row |= {"forward TFLOP/s": 4 * dim * heads * pairs / first / 1e12}
            row |= {"backward TFLOP/s": 10 * dim * heads * pairs / max(second - first, 1e-9) / 1e12}
            yield row | _errors(attend_with, inputs, attend, slots)


def _implementations(attend: jax.Array, heads: int, key_heads: int, dim: int, documents: int) -> dict[str, Callable]:
    config, _ = case("solo_30m", ())
    device = jax.devices()[0]
    kernel = choose_kernel(config.model, device.platform, device.device_kind)
    found = {"cuDNN": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")}
    kinds: dict[str, Kernel] = {kernel.implementation: kernel, "blocks": Kernel("blocks", 128, 128)}
    for name, each in kinds.items():
        found[name] = lambda q, k, v, each=each: interval_attention(q, k, v, attend, num_patches=0, **each._asdict())
    if documents > 1 or not ON_GPU:
        # cuDNN computes the whole row; its rate is that of the visible pairs of one document.
        found.pop("cuDNN")
    return found


def _errors(attend_with: Callable, inputs: tuple, attend: jax.Array, slots: int) -> Row:
    """Returns the largest errors of the output and gradients against dense attention in float32, on one short row."""
    if slots > 4096:
        return {}
    dense = functools.partial(interval_attention, num_patches=0, implementation="dense")
    exact = [x.astype(jnp.float32) for x in inputs]
    found, pull = jax.vjp(attend_with, *inputs)
    expected, pull_exact = jax.vjp(lambda *x: dense(*x, attend), *exact)
    pairs = zip((found, *pull(inputs[0])), (expected, *pull_exact(exact[0])), strict=True)
    errors = [float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()) for a, b in pairs]
    return dict(zip(("error", "error dq", "error dk", "error dv"), errors, strict=True)) | {"error": errors[0]}


def small() -> Iterator[Row]:
    """Yields steps of the small configs."""
    for model in ("solo_30m", "solo_150m"):
        for overrides in ((), (LOOP,)):
            yield step(model, overrides)


def large() -> Iterator[Row]:
    """Yields a step of the 2B model."""
    yield step("mono_internvl_2b", PREFERRED)


def eight() -> Iterator[Row]:
    """Yields steps with products in eight bits."""
    for model, kind, rest in (
        ("solo_150m", "fp8", ()),
        ("solo_150m", "int8", ()),
        ("mono_internvl_2b", "fp8", PREFERRED),
    ):
        yield step(model, (f"model.quantization.kind={kind}", *rest))


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    each.__name__: each for each in (rates, attention, small, large, eight)
}


# --- A step ---


def step(model: str, overrides: Sequence[str]) -> Row:
    """Measures a training step, and compares it with what the planner says about the same program."""
    config, stage = case(model, (*overrides, *(() if ON_GPU else TINY)))
    if not ON_GPU:
        stage = stage.model_copy(update={"batch_rows": TINY_ROWS})
    definition = ModelDefinition(config.model, config.image, config.model.vocab_size or 0)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    made = make_stage(definition, stage, 100, SafetyConfig(), mesh, config.compiler_options)
    shape = RowShape(PATCHES, TEXT, TEXT) if ON_GPU else RowShape(96, 32, 32)
    document = Document(shape.patch_slots, shape.text_slots, shape.target_slots)
    rows = Rows(shape, 100, ((document,),), "one document a row")
    batch = device_batch(_batch(config, stage, definition, rows, mesh), mesh)
    start = time.perf_counter()
    compiled = compile_lowered(made.step.lower(made.abstract, batch), mesh, config.compiler_options)
    took = time.perf_counter() - start
    state = made.start(jax.jit(definition.initialise)(jax.random.key(0)))
    losses, times = [], []
    for _ in range(REPEATS + 3):
        start = time.perf_counter()
        state, measured = compiled(state, batch)
        losses.append(float(measured["loss"]))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[3:])
    device = jax.devices()[0]
    chip = chip_of(device.device_kind) or CHIPS["h200"]
    chip = chip if ON_GPU else CHIPS["h200"]
    flops = planned_flops(config, stage, definition, rows, chip, 1)
    found = gpu_step_time(parse_module(compiled.as_text()), [], flops, Machine(f"{chip.name}-1", chip, 1, None, 1))
    memory = compiled.memory_analysis()
    return {
        "what": " ".join((model, *overrides)),
        "fit": [model, list(overrides), seconds],
        "ms": 1e3 * seconds,
        "estimate ms": 1e3 * found.total if isinstance(found, StepTime) else None,
        "MFU": sum(flops.useful.values()) / seconds / (chip.peak_flops or 1e12),
        "GiB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
        "compiled in s": took,
        "first loss": losses[0],
        "last loss": losses[-1],
    }


def _batch(config: Config, stage: StageConfig, definition: ModelDefinition, rows: Rows, mesh: Any) -> Batch:
    """Returns random rows, each with one document."""
    rng, shape = np.random.default_rng(0), rows.shape
    empty = abstract_batch(config, stage.batch_rows, shape, mesh)
    place, side = np.arange(shape.patch_slots), 16
    attend = row_intervals(rows.documents[0], shape, config.image, config.sequence)
    positions = np.arange(shape.slots)
    values: dict[str, Any] = {
        "patches": rng.integers(0, 256, empty.patches.shape),
        # Images of 16 x 16 patches.
        "patch_grid": np.stack([place // side % side, place % side], axis=-1),
        "text": rng.integers(0, definition.vocab_size, empty.text.shape),
        "positions": positions if len(empty.positions.shape) == 2 else positions[:, None],
        "attend": attend,
        "target_slots": np.arange(shape.target_slots),
        "target_ids": rng.integers(0, definition.vocab_size, empty.target_ids.shape),
        "target_weights": 1.0,
        "target_source": 0,
    }
    return Batch(
        **{
            name: np.broadcast_to(value, getattr(empty, name).shape).astype(getattr(empty, name).dtype)
            for name, value in values.items()
        }
    )


# --- The session ---


def run_part(name: str) -> None:
    """Prints every row of a part as a line of JSON."""
    try:
        for row in PARTS[name]():
            print(json.dumps({"row": row}), flush=True)
    except Exception:
        print(json.dumps({"row": {"what": name, "error": traceback.format_exc()[-2000:]}}), flush=True)


def session(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Runs parts in processes of their own, and writes what they found after each."""
    device = jax.devices()[0]
    found: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "parts": {}, "steps_for_fit": []}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        start = time.monotonic()
        command = [sys.executable, "-m", "tests.benchmarks.gpu_session", "--only", name]
        # Output goes to a file, so that a part that is stopped keeps the rows it has printed.
        with (folder / f"{name}.log").open("w+") as log:
            try:
                subprocess.run(command, stdout=log, stderr=subprocess.DEVNULL, timeout=LIMITS[name], check=False)
                ended = "ended"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {LIMITS[name]} s"
            log.seek(0)
            rows = [json.loads(line)["row"] for line in log if line.startswith('{"row"') and line.endswith("\n")]
        found["parts"][name] = {"rows": rows, "ended": ended, "seconds": time.monotonic() - start}
        found["steps_for_fit"] += [row["fit"] for row in rows if "fit" in row and "quantization" not in row["what"]]
        (folder / "session.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "session.md").write_text(table(found))
        print(f"{name}: {ended}, {len(rows)} rows", flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """Returns the figures as tables in Markdown."""
    lines = [f"{found['device']}, jax {found['jax']}"]
    for name, part in found["parts"].items():
        rows = part["rows"]
        columns = list(dict.fromkeys(key for row in rows for key in row if key not in ("what", "fit")))
        lines += ["", f"## {name}: {part['ended']}, {part['seconds']:.0f} s", "", f"| | {' | '.join(columns)} |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        lines += [f"| {row['what']} | {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ").replace("|", "/")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {' '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("gpu_session"), help="folder of the results")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run_part(arguments.only)
        return
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}")
    session(arguments.parts or list(PARTS), arguments.out)
    print((arguments.out / "session.md").read_text())


if __name__ == "__main__":
    main()
