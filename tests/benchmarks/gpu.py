"""Compares a training step with PyTorch's on the available device: `python -m tests.benchmarks.gpu [CONFIG ...]`.

Both sides have the same model, weights, rows and AdamW, and run alternately in one process. PyTorch runs the model that
exports ship (SDPA attention, autocast to bfloat16, fused AdamW on a GPU, gradient checkpointing unless `model.remat` is
`none`). A row has one document, or several with `--documents`. PyTorch gets each document as a row of its own, which
needs no mask and no padding: its best case. On a GPU the configs of 30M, 150M and 2B run in bfloat16; on a CPU the
smallest one, with small rows, in float32 and bfloat16. Needs torch and transformers; on a GPU, jax and torch built for
it.

The first losses are printed too: if they differ, the two sides computed different things. On a CPU, the ratio of CPU
times is printed too, which other work on the machine disturbs less. MFU counts useful FLOPs
(`solo.model.flops`) against the data sheet's peak. Memory is the compiler's count for solo, and the measured peak for
PyTorch.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Leaves memory to PyTorch. It must be set before jax is imported.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
import torch

from solo.batch import Batch
from solo.chips import chip_of, peak_flops
from solo.config import Config, MeshConfig, SafetyConfig, StageConfig, load_config
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import PATCH, Document
from solo.interop.layouts.native import NATIVE
from solo.interop.remote.configuration_solo import SoloMonolithConfig
from solo.interop.remote.modeling_solo import SoloMonolithForCausalLM
from solo.interop.weights import tensor_of
from solo.model.flops import batch_stats, step_flops
from solo.model.parameters import ModelDefinition, Parameters
from solo.sharding.mesh import device_batch, make_mesh
from solo.training.step import make_stage
from tests.interop.twins import BEGIN, END, PLACEHOLDER, ROW, document

MODELS = Path(__file__).parents[2] / "configs" / "models"
RATE, CLIP = 1e-4, 1.0


class Case(NamedTuple):
    """One config, its rows for both sides, and the initial weights of both."""

    config: Config
    definition: ModelDefinition
    documents: list[Document]
    batch: Batch
    parameters: Parameters


class Contestant(NamedTuple):
    """`step` runs a step and returns the loss. `memory` returns the peak in bytes, at the end; None if unknown."""

    step: Callable[[], float]
    memory: Callable[[], int | None]


def make_case(name: str, dtype: str, rows: int, slots: int, overrides: list[str], packed: int = 1) -> Case:
    """Makes rows of `packed` documents of images (three quarters of the slots) and text; all text is supervised."""
    slots //= packed
    config = load_config(name if name.endswith(".yaml") else MODELS / f"{name}.yaml", overrides)
    model = config.model.model_copy(
        update={"compute_dtype": dtype, "vocab_size": config.model.vocab_size or config.data.tokenizer.vocab_size}
    )
    config = config.model_copy(update={"model": model})
    embed = model.patch_embed
    side = min(16, embed.grid_side * embed.inner_size // config.image.patch_size) if embed.grid_side else 16
    side = min(side, int((0.75 * slots) ** 0.5))
    images = max(1, int(0.75 * slots) // side**2)
    text = max(8, (slots - images * (side**2 + side + 1)) // images)
    parts = [part for _ in range(images) for part in ((side, side), text)]
    documents = [document(config, *parts, seed=seed) for seed in range(rows * packed)]
    documents = [dataclasses.replace(each, supervised=each.tokens != PATCH) for each in documents]
    patches = int((documents[0].tokens == PATCH).sum())
    text = len(documents[0].tokens) - patches
    shape = RowShape(packed * patches, packed * text, packed * text)
    in_rows = [[(each, 0) for each in documents[first : first + packed]] for first in range(0, rows * packed, packed)]
    batch = stack([assemble_row(row, shape, config.image, 0, config.sequence) for row in in_rows])
    definition = ModelDefinition(model, config.image, model.vocab_size)
    parameters = jax.device_get(jax.jit(definition.initialise)(jax.random.key(0)))
    return Case(config, definition, documents, batch, parameters)


def ours(case: Case) -> Contestant:
    """Returns the step of `solo train`, on one device."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = {"learning_rate": RATE, "schedule": "constant", "clip_norm": CLIP}
    stage_config = StageConfig.model_validate(
        {"name": "b", "mixture": {"a": 1.0}, "steps": 100, "batch_rows": len(case.batch.text), "optimizer": optimizer}
    )
    options = case.config.compiler_options
    stage = make_stage(case.definition, stage_config, 100, SafetyConfig(), mesh, options)
    batch = device_batch(case.batch, mesh)
    compiled = stage.step.lower(stage.abstract, batch).compile()
    state = [stage.start(jax.device_put(case.parameters, jax.devices()[0]))]

    def step() -> float:
        state[0], measured = compiled(state[0], batch)
        return float(measured["loss"])

    found = compiled.memory_analysis()
    memory = found.argument_size_in_bytes + found.temp_size_in_bytes
    return Contestant(step, lambda: memory)


def theirs(case: Case, compile: bool) -> Contestant:
    """Returns a step of the PyTorch model with the same weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):  # Initialising billions of weights on a CPU is slow.
        model = _torch_model(case).to(device).train()
    if case.config.model.remat != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = {name: value.to(device) for name, value in _inputs(case).items()}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
    )
    forward = torch.compile(model) if compile else model
    half = case.config.model.compute_dtype == "bfloat16"

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = forward(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return Contestant(step, lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)


def _torch_model(case: Case) -> Any:
    config = case.config
    json = NATIVE.config_json(config, case.definition.vocab_size) | {
        "image_token_id": PLACEHOLDER,
        "image_begin_id": BEGIN if config.image.begin_token else None,
        "image_end_id": END if config.image.end_token else None,
        "image_row_id": ROW if config.image.row_token else None,
    }
    torch_config = SoloMonolithConfig(**{key: value for key, value in json.items() if key != "model_type"})
    torch_config._attn_implementation = "sdpa"
    model = SoloMonolithForCausalLM(torch_config)
    tensors = {
        rule.name: torch.from_numpy(np.array(tensor_of(rule, case.parameters, np.float32)))
        for rule in NATIVE.tensors(case.definition)
    }
    if config.model.tied_head:
        tensors["head.weight"] = tensors["model.text_embed.weight"]
    model.load_state_dict(tensors)
    return model


def _inputs(case: Case) -> dict[str, torch.Tensor]:
    tokens = np.stack([each.tokens for each in case.documents]).astype(np.int64)
    image, per_channel = case.config.image, case.config.image.patch_size**2
    pixels = np.concatenate([each.patches for each in case.documents]).astype(np.float32) / 255
    pixels = (pixels - np.repeat(image.mean, per_channel)) / np.repeat(image.std, per_channel)
    return {
        "input_ids": torch.from_numpy(np.where(tokens == PATCH, PLACEHOLDER, tokens)),
        "labels": torch.from_numpy(np.where(tokens == PATCH, -100, tokens)),
        "pixel_values": torch.from_numpy(pixels.astype(np.float32)),
        "patches_grid": torch.from_numpy(np.concatenate([each.patch_grid for each in case.documents]).astype(np.int64)),
    }


def measure(makers: dict[str, Callable[[], Contestant]], repeats: int, in_turns: bool) -> dict[str, tuple]:
    """Returns name -> (first loss, median seconds of a step, median CPU seconds, bytes).

    Without `in_turns` only one contestant is in memory.
    """
    found = {}
    groups = [list(makers)] if in_turns else [[name] for name in makers]
    for group in groups:
        contestants = {name: makers[name]() for name in group}
        losses = {name: each.step() for name, each in contestants.items()}
        for each in contestants.values():
            each.step()  # lets allocators and clocks settle
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in group}
        for _ in range(repeats):
            for name, each in contestants.items():
                start, cpu = time.perf_counter(), time.process_time()
                each.step()
                times[name].append((time.perf_counter() - start, time.process_time() - cpu))
        for name, each in contestants.items():
            seconds, of_cpu = map(statistics.median, zip(*times[name], strict=True))
            found[name] = losses[name], seconds, of_cpu, each.memory()
        del contestants, each
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def compare(name: str, dtype: str, arguments: argparse.Namespace) -> None:
    """Prints the figures and ratios of one config."""
    case = make_case(name, dtype, arguments.rows, arguments.slots, arguments.set, arguments.documents)
    makers: dict[str, Callable[[], Contestant]] = {
        "solo": lambda: ours(case),
        "PyTorch": lambda: theirs(case, arguments.compile),
    }
    found = measure(makers, arguments.repeats, not arguments.one_at_a_time)
    flops = sum(step_flops(case.definition, batch_stats(case.batch)).values())
    peak = peak_flops(jax.devices()[0].device_kind)
    slots = case.batch.attend.shape[0] * case.batch.attend.shape[1]
    print(
        f"\n{name}, {dtype}: {case.definition.num_parameters() / 1e6:,.0f}M parameters, {len(case.batch.text)} rows of"
        f" {case.batch.attend.shape[1]} slots ({case.batch.patches.shape[1]} patches, {arguments.documents} documents),"
        f" remat {case.config.model.remat}"
    )
    for who, (loss, seconds, _, memory) in found.items():
        mfu = f"{flops / seconds / peak:6.1%}" if peak else f"{flops / seconds / 1e9:,.0f} GFLOP/s"
        held = f"{memory / 2**30:.2f} GiB" if memory else "-"
        print(f"  {who:8} {seconds:8.4f} s   {slots / seconds:10,.0f} slots/s   MFU {mfu}   {held}   loss {loss:.4f}")
    ratios = [f"time {found['solo'][1] / found['PyTorch'][1]:.3f}"]
    if jax.default_backend() == "cpu":
        ratios.append(f"CPU time {found['solo'][2] / found['PyTorch'][2]:.3f}")
    if found["PyTorch"][3]:
        ratios.append(f"memory {found['solo'][3] / found['PyTorch'][3]:.3f}")
    print(f"  solo / PyTorch: {', '.join(ratios)}", flush=True)


def main() -> None:
    """Runs the command line."""
    on_gpu = jax.default_backend() == "gpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("configs", nargs="*", help="names in configs/models, or YAML files")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=8 if on_gpu else 1)
    parser.add_argument("--slots", type=int, default=2048 if on_gpu else 128, help="approximate slots of a row")
    parser.add_argument("--documents", type=int, default=1, help="documents of a row")
    parser.add_argument("--repeats", type=int, default=20 if on_gpu else 3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the PyTorch model")
    parser.add_argument("--one-at-a-time", action="store_true", help="for models that do not fit in memory twice")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the configs")
    arguments = parser.parse_args()
    configs = arguments.configs or ["solo_30m", "solo_150m", "mono_internvl_2b"][: None if on_gpu else 1]
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    print(
        f"{device.device_kind} ({chip.name if chip else 'unknown'}), jax {jax.__version__}, torch {torch.__version__}"
    )
    for name in configs:
        for dtype in arguments.dtype or (["bfloat16"] if on_gpu else ["float32", "bfloat16"]):
            compare(name, dtype, arguments)


if __name__ == "__main__":
    main()
