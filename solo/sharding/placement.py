"""How the network's parts are laid over a mesh: what is pinned where, and what each device computes by itself."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from solo.config import ConfigError, ModelConfig
from solo.model.attention.kernel import Kernel, choose_kernel
from solo.model.modules import Parts, Regions, Weight
from solo.model.moe import ExpertWeights, Load, local_mixture
from solo.model.rotary import rotate, rotate_by_product
from solo.model.transformer import Placement, attention_by
from solo.sharding.mesh import TABLE, partition
from solo.sharding.projection import project_on


def placement(mesh: Mesh, config: ModelConfig) -> Placement:
    """Constraints and attention for a mesh; plain local computation for one device.

    Raises:
        ConfigError: the tensor axis does not divide the heads, or the devices cannot run the attention
            implementation.
    """
    device = mesh.devices.flat[0]
    kernel = choose_kernel(config, device.platform, device.device_kind)
    turn = rotate_by_product if device.platform == "tpu" else rotate
    if mesh.size == 1:
        return Placement(
            attention=lambda q, k, v, attend_BS4, config: attention_by(kernel, q, k, v, attend_BS4), rotate=turn
        )
    tensor = mesh.shape["tensor"]
    if config.kv_heads % tensor:
        raise ConfigError(f"mesh.tensor {tensor} does not divide model.kv_heads {config.kv_heads}")

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes, x.shape, mesh)))

    def attention(q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array, config: ModelConfig) -> Regions:
        return _attention_on(mesh, kernel, q, k, v, attend_BS4)

    def mixture(x: Regions, live: Regions, weights: ExpertWeights, top_k: int) -> tuple[Regions, Load]:
        return _mixture_on(mesh, x, live, weights, top_k)

    def project(parts: Parts, weights: Sequence[Weight]) -> tuple[Parts, ...]:
        return project_on(mesh, parts, weights)

    return Placement(constrain, project, attention, mixture, turn)


def _attention_on(mesh: Mesh, kernel: Kernel, q: Regions, k: Regions, v: Regions, attend_BS4: jax.Array) -> Regions:
    """Every device attends for its rows, its heads and its share of the queries, over all keys of the row."""
    heads = PartitionSpec(TABLE["rows"], TABLE["slots"], TABLE["heads"])
    slots = PartitionSpec(TABLE["rows"], TABLE["slots"])
    intervals = Regions.split(attend_BS4, q.patches.shape[1])

    def local(q: Regions, k: Regions, v: Regions, intervals: Regions) -> Regions:
        if mesh.shape["context"] > 1:
            k, v = (part.map(lambda x: jax.lax.all_gather(x, "context", axis=1, tiled=True)) for part in (k, v))
        return attention_by(kernel, q, k, v, intervals.join())

    # The kernel's loops run as often as a device's own rows need: there is no replication to check.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(Regions(heads, heads),) * 3 + (Regions(slots, slots),),
        out_specs=Regions(heads, heads),
        check_vma=False,
    )(q, k, v, intervals)


def _mixture_on(mesh: Mesh, x: Regions, live: Regions, weights: ExpertWeights, top_k: int) -> tuple[Regions, Load]:
    """Every device routes its own slots, over its share of every expert's FFN width: no slot travels."""
    slots = PartitionSpec(TABLE["rows"], TABLE["slots"])
    ffn = partition(("ffn",), weights.gate.shape[2:], mesh)[0]
    everywhere = PartitionSpec()
    of_weights = ExpertWeights(
        everywhere, PartitionSpec(None, None, ffn), PartitionSpec(None, None, ffn), PartitionSpec(None, ffn)
    )

    def local(x: Regions, live: Regions, weights: ExpertWeights) -> tuple[Regions, Load]:
        out, load = local_mixture(x, live, weights, top_k)
        if ffn is not None:
            out = out.map(lambda part: jax.lax.psum(part, ffn))
        return out, Load(*(jax.lax.psum(part, (*TABLE["rows"], *TABLE["slots"])) for part in load))

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(Regions(slots, slots), Regions(slots, slots), of_weights),
        out_specs=(Regions(slots, slots), Load(everywhere, everywhere, everywhere)),
        check_vma=False,
    )(x, live, weights)
