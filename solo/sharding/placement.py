"""The model's operations on a mesh: sharding constraints, and the computation on each device."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.chips import chip_of
from solo.config import ConfigError, ModelConfig
from solo.model.attention.kernel import Kernel, choose_kernel
from solo.model.dense import dense, dense_on_cpu
from solo.model.moe import ExpertWeights, Load, routed_ffn
from solo.model.placement import Placement, attention_with
from solo.model.quantized import kind_of, quantized_dense, require_library
from solo.model.regions import Regions
from solo.model.rotary import rotate, rotate_by_product
from solo.sharding.axes import row_shards
from solo.sharding.dense import dense_on
from solo.sharding.head import with_head_on
from solo.sharding.mesh import TABLE, partition


# Cached, because a placement is a static argument of compiled functions and its functions compare by identity.
@cache
def placement(mesh: Mesh, config: ModelConfig) -> Placement:
    """Returns the operations of a model on a mesh. On a mesh of one device, they are the local operations.

    Raises:
        ConfigError: the tensor axis does not divide the key heads, or the devices cannot run the attention
            implementation.
    """
    device = mesh.devices.flat[0]
    kernel = choose_kernel(config, device.platform, device.device_kind)
    turn = rotate_by_product if device.platform == "tpu" else rotate
    if mesh.size == 1:
        return Placement(
            dense=dense_on_cpu if device.platform == "cpu" else dense,
            attention=partial(attention_with, kernel),
            rotate=turn,
        )
    tensor = mesh.shape["tensor"]
    for kind in config.layers_by_type:
        if (heads := config.of_type(kind).kv_heads) % tensor:
            where = "model.kv_heads" if kind is None else f"kv_heads of {kind} in model.layer_types,"
            raise ConfigError(f"mesh.tensor {tensor} does not divide {where} {heads}")

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes, x.shape, mesh)))

    def sharded(x: Any, *weights: nnx.Param) -> Any:
        return dense_on(mesh, x, *weights)

    def attention(q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
        return _attention_on(mesh, kernel, q, k, v, attend_BS4, config)

    def experts(x: Regions, live: Regions, weights: ExpertWeights, top_k: int) -> tuple[Regions, Load]:
        return routed_ffn_on(mesh, x, live, weights, top_k, TABLE["slots"])

    found = Placement(constrain, sharded, attention, experts, turn, unites=mesh.shape["context"] == 1)
    if tensor > 1:
        return found._replace(row_shards=row_shards(mesh.shape), vocab_shards=tensor)
    return found._replace(with_head=partial(with_head_on, mesh))


@cache
def training_placement(mesh: Mesh, config: ModelConfig) -> Placement:
    """Returns `placement` with the products of `model.quantization`.

    Raises:
        ConfigError: see `placement`; also if the devices have no such products, or Qwix is not installed.
    """
    where, quantization = placement(mesh, config), config.quantization
    if quantization.kind == "none":
        return where
    where = where._replace(unites=False)  # an empty region has no largest value to scale by
    chip = chip_of(mesh.devices.flat[0].device_kind)
    if chip is not None and quantization.kind not in chip.quantized_products:
        has = " or ".join(chip.quantized_products)
        raise ConfigError(
            f"model.quantization.kind {quantization.kind}: {chip.name} has no such products;"
            f" {f'choose {has}, or ' if has else ''}set it to none"
        )
    require_library()
    if mesh.size == 1:
        return where._replace(dense=quantized_dense(quantization, where.dense))

    def sharded(x: Any, *weights: nnx.Param) -> Any:
        return dense_on(mesh, x, *weights, kind=kind_of(quantization, weights[0]))

    return where._replace(dense=sharded)


def _attention_on(
    mesh: Mesh, kernel: Kernel, q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig
) -> Regions:
    """Computes attention of each device's rows, heads and context shard over all keys of the row."""
    heads = PartitionSpec(TABLE["rows"], TABLE["slots"], TABLE["heads"])
    slots = PartitionSpec(TABLE["rows"], TABLE["slots"])
    intervals = Regions.split(attend_BS4, q.patches.shape[1])

    def local(q: Regions, k: Regions, v: Regions, intervals: Regions) -> Regions:
        if mesh.shape["context"] > 1:
            k, v = all_slots(k, ("context",)), all_slots(v, ("context",))
        return attention_with(kernel, q, k, v, intervals.join(), config)

    # The kernel's loop counts depend on the device's rows, so shard_map cannot check replication.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(Regions(heads, heads),) * 3 + (Regions(slots, slots),),
        out_specs=Regions(heads, heads),
        check_vma=False,
    )(q, k, v, intervals)


def all_slots(x: Regions, axes: tuple[str, ...]) -> Regions:
    """Returns the slots of all devices along mesh axes, inside a shard_map. Rows of text have an empty region."""
    return x.map(lambda part: jax.lax.all_gather(part, axes, axis=1, tiled=True) if part.shape[1] else part)


def routed_ffn_on(
    mesh: Mesh, x: Regions, live: Regions, weights: ExpertWeights, top_k: int, sharded: tuple[str, ...] | None
) -> tuple[Regions, Load]:
    """A mixture of experts on a mesh. Each device has a shard of every expert's FFN width, and slots stay in place.

    sharded  mesh axes that the slots of a row are sharded over
    """
    slots = PartitionSpec(TABLE["rows"], sharded)
    ffn = partition(("ffn",), weights.gate.shape[2:], mesh)[0]
    everywhere = PartitionSpec()
    weight_specs = ExpertWeights(
        everywhere, PartitionSpec(None, None, ffn), PartitionSpec(None, None, ffn), PartitionSpec(None, ffn)
    )

    def local(x: Regions, live: Regions, weights: ExpertWeights) -> tuple[Regions, Load]:
        out, load = routed_ffn(x, live, weights, top_k)
        if ffn is not None:
            out = out.map(lambda part: jax.lax.psum(part, ffn))
        return out, Load(*(jax.lax.psum(part, (*TABLE["rows"], *(sharded or ()))) for part in load))

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(Regions(slots, slots), Regions(slots, slots), weight_specs),
        out_specs=(Regions(slots, slots), Load(everywhere, everywhere, everywhere)),
        check_vma=False,
    )(x, live, weights)
