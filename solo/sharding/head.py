"""The output projection (LM head) on a mesh: each device computes the logits of its own slots.

XLA's partitioner would all-gather the projection, and reduce its gradient over all devices, once per chunk of slots.
Here, both happen once for all chunks. This is for meshes that do not shard the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from solo.sharding.dense import Layout, gathered
from solo.sharding.mesh import partition


def with_head_on(
    mesh: Mesh,
    function: Callable[[jax.Array, jax.Array, jax.Array], Any],
    x_BYD: jax.Array,
    ids_BY: jax.Array,
    kernel_DV: jax.Array,
) -> Any:
    """`solo.model.placement.Placement.with_head` on a mesh whose tensor axis has one device.

    As in `solo.sharding.dense`, the projection is all-gathered, and its gradient is reduced over devices, in the dtype
    of the hidden states. Within a device, the gradients of the chunks are summed in float32.
    """
    layout = Layout(partition(("embed", "vocab"), kernel_DV.shape, mesh), inputs=1, kind="none")
    slots = partition(("rows", "slots"), ids_BY.shape, mesh)

    def local(x_BYD: jax.Array, ids_BY: jax.Array, shard: jax.Array) -> Any:
        whole = gathered(mesh, layout, shard, x_BYD.dtype)
        # Cast to float32, so that the gradients of the chunks are summed in float32. The compiler removes the cast.
        return function(x_BYD, ids_BY, whole.astype(jnp.float32))

    return jax.shard_map(local, mesh=mesh, in_specs=(slots, slots, layout.spec), out_specs=slots, check_vma=False)(
        x_BYD, ids_BY, kernel_DV
    )
