"""The compiled step on eight devices: what each device holds, and what they exchange."""

import re
from functools import cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from solo.batch import Batch
from solo.config import ExpertsConfig, ImageConfig, MeshConfig, ModelConfig, SafetyConfig
from solo.model.parameters import ModelDefinition
from solo.sharding.axes import row_shards
from solo.sharding.mesh import batch_shardings, make_mesh
from solo.training.step import Stage, make_stage
from tests.training.test_step import stage_config

# No two sizes alike, so that a dimension tells what it is: B 8, P 80, T 112, Y 88, D 48, F 104, V 640.
ROWS, PATCHES, TEXT, TARGETS, WIDTH, FFN, VOCAB = 8, 80, 112, 88, 48, 104, 640
TARGETS_PER_CHUNK = 8  # of each row
DEFINITION = ModelDefinition(
    ModelConfig(
        width=WIDTH, layers=2, heads=4, kv_heads=2, head_dim=16, ffn_width=FFN, attention_implementation="dense",
        experts=ExpertsConfig(ffn="modality", qkv="modality", out="modality", norms="modality"), remat="attention",
    ),
    ImageConfig(patch_size=2),
    VOCAB,
)  # fmt: skip
MESHES = {
    "data, fsdp and tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp, context and tensor": MeshConfig(fsdp=2, context=2, tensor=2),
}


class Collective(NamedTuple):
    """One instruction: its kind, and the shape of its result on each device."""

    kind: str
    shape: tuple[int, ...]


@cache
def built(name: str) -> tuple[Stage, Any]:
    """The stage on a mesh, and its compiled step."""
    mesh = make_mesh(MESHES[name], jax.devices()[:8])
    config = stage_config(batch_rows=ROWS, loss={"chunk_size": TARGETS_PER_CHUNK * ROWS // row_shards(mesh.shape)})
    stage = make_stage(DEFINITION, config, 5, SafetyConfig(), mesh)
    slots = PATCHES + TEXT
    shapes = {
        "patches": ((PATCHES, 12), jnp.uint8),
        "patch_grid": ((PATCHES, 2), jnp.int32),
        "text": ((TEXT,), jnp.int32),
        "positions": ((slots,), jnp.int32),
        "attend": ((slots, 4), jnp.int32),
        "target_weights": ((TARGETS,), jnp.float32),
    }
    found = {field: shapes.get(field, ((TARGETS,), jnp.int32)) for field in Batch._fields}
    shardings = batch_shardings(mesh)
    batch = Batch(
        **{
            field: jax.ShapeDtypeStruct((ROWS, *shape), dtype, sharding=getattr(shardings, field))
            for field, (shape, dtype) in found.items()
        }
    )
    return stage, stage.step.lower(stage.abstract, batch).compile()


def shapes_in(text: str) -> set[tuple[int, ...]]:
    """The shapes of all arrays of a program."""
    return {tuple(int(n) for n in found.split(",")) for found in re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", text)}


def collectives(text: str) -> list[Collective]:
    """All collectives of a program; those in loops are listed once."""
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute|ragged-all-to-all"
    lines = [(line, re.search(rf" ({kinds})(?:-start)?\(", line)) for line in text.splitlines()]
    return [
        Collective(found[1], shape)
        for line, found in lines
        if found
        for shape in shapes_in(line[: found.start()].partition("=")[2])
    ]


def in_loops(text: str) -> str:
    """The computations that run once per layer, or once per chunk of the loss."""
    blocks = {match[1]: block for block in text.split("\n\n") if (match := re.match(r"(?:ENTRY )?%?([\w.\-]+)", block))}
    wanted = set(re.findall(r"body=%?([\w.\-]+)", text))
    found: set[str] = set()
    while wanted:
        found |= wanted
        mentioned = {name for block in wanted for name in re.findall(r"%([\w.\-]+)", blocks[block])}
        wanted = (mentioned & blocks.keys()) - found
    return "\n\n".join(blocks[name] for name in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_logits_exist_for_a_chunk_and_a_share_of_the_vocabulary(name: str) -> None:
    stage, compiled = built(name)
    mesh = stage.abstract.step.sharding.mesh
    vocab = VOCAB // mesh.shape["tensor"]
    rows = ROWS // row_shards(mesh.shape)
    found = {shape for shape in shapes_in(compiled.as_text()) if {vocab, VOCAB} & set(shape)}
    logits = {prod(shape) for shape in found if not {WIDTH, WIDTH // 2} & set(shape)}
    # The largest logits are those of a chunk of the device's own rows.
    assert max(logits) == rows * TARGETS_PER_CHUNK * vocab
    assert max(map(prod, found)) < rows * TARGETS * vocab / 2


@pytest.mark.parametrize("name", MESHES)
def test_moments_lie_where_their_parameters_lie(name: str) -> None:
    stage, compiled = built(name)
    parameters = stage.abstract.parameters
    moments = [leaf for leaf in jax.tree.leaves(stage.abstract.optimizer, is_leaf=_is_by_path) if _is_by_path(leaf)]
    assert len(moments) == 2
    for by_path in moments:
        assert {path: leaf.sharding for path, leaf in by_path.items()} == {
            path: leaf.sharding for path, leaf in parameters.items()
        }
    sharded = [leaf for leaf in parameters.values() if not leaf.sharding.is_fully_replicated]
    assert sum(leaf.size for leaf in sharded) > 0.95 * sum(leaf.size for leaf in parameters.values())
    # The compiled step takes and returns no more than that.
    state = jax.tree.leaves(stage.abstract)
    held = sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in state)
    assert compiled.memory_analysis().argument_size_in_bytes < 1.2 * held


@pytest.mark.parametrize("name", MESHES)
def test_no_slot_of_a_region_travels_for_its_expert(name: str) -> None:
    """In the layers only weights are gathered, and keys and values along the context axis."""
    _, compiled = built(name)
    found = collectives(in_loops(compiled.as_text()))
    assert not {each.kind for each in found} & {"all-to-all", "ragged-all-to-all"}
    slots = {PATCHES, TEXT, PATCHES // 2, TEXT // 2}
    travelling = {each for each in found if slots & set(each.shape)}
    # Summed over tensor, and gradients of keys and values over context; the rest is gathered.
    assert {each.kind for each in travelling} <= {"all-gather", "all-reduce", "reduce-scatter"}
    with_slots = {each.shape for each in travelling if each.kind == "all-gather"}
    assert any(each.kind == "all-gather" for each in found if each not in travelling), "weights are gathered over fsdp"
    head_dim = DEFINITION.config.dim_per_head
    expected = {(4, slots, 1, head_dim) for slots in (PATCHES, TEXT)} if "context" in name else set()
    assert with_slots == expected


@pytest.mark.parametrize("name", MESHES)
def test_no_device_gathers_more_activations_than_it_holds(name: str) -> None:
    """The embedding's lookup, above all: its table is sharded by width, and its tokens by rows."""
    stage, compiled = built(name)
    sizes = stage.abstract.step.sharding.mesh.shape
    held = ROWS // (sizes["data"] * sizes["fsdp"]) * TEXT // sizes["context"] * WIDTH
    slots = {PATCHES, TEXT, PATCHES // 2, TEXT // 2}
    found = [each.shape for each in collectives(compiled.as_text()) if each.kind == "all-gather"]
    with_width = [shape for shape in found if slots & set(shape) and {WIDTH, WIDTH // 2} & set(shape)]
    assert all(prod(shape) <= held for shape in with_width), with_width


def _is_by_path(tree: Any) -> bool:
    return isinstance(tree, dict) and "text_embed" in tree
