"""The two regions of a row, and components with shared or separate weights for them.

Hidden states are a pair of arrays, `Regions(patches, text)`. Weights per modality are therefore selected statically,
without a gather, a mask or a router.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from solo.config import Sharing
from solo.model.declare import set_region


class Regions(NamedTuple):
    """The two regions of a row: patches [B, P, ...] and text [B, T, ...]."""

    patches: Any
    text: Any

    @classmethod
    def split(cls, x_BS: jax.Array, num_patches: int) -> Regions:
        """Split [B, S, ...] into its regions."""
        return cls(x_BS[:, :num_patches], x_BS[:, num_patches:])

    @classmethod
    def unite(cls, x_BS: jax.Array) -> Regions:
        """Returns regions of which the second has all slots [B, S, ...], for layers that treat both alike."""
        return cls(x_BS[:, :0], x_BS)

    def join(self) -> jax.Array:
        """Concatenate the regions to [B, S, ...], S = P + T."""
        return jnp.concatenate([self.patches, self.text], axis=1)

    def map(self, function: Callable[..., Any], *others: Regions) -> Regions:
        """Apply a function to each region."""
        return Regions(*(function(*parts) for parts in zip(self, *others, strict=True)))


class PerRegion(nnx.Module):
    """A component with one set of weights for both regions (`shared`), or one for each (`patches`, `text`).

    A shared component is called with `Regions`, so that the gradient of a weight is summed over both regions at once. A
    separate one is called with the array [B, ., ...] of its region.
    """

    def __init__(self, sharing: Sharing, make: Callable[[], Any]):
        self.sharing = sharing
        if sharing == "shared":
            self.shared = make()
        else:
            self.patches = set_region(make(), "patches")
            self.text = set_region(make(), "text")

    def __call__(self, x: Regions, *arguments: Any) -> Any:
        """Returns the component's output, or each of its outputs, as `Regions`."""
        if self.sharing == "shared":
            return self.shared(x, *arguments)
        return jax.tree.map(Regions, self.patches(x.patches, *arguments), self.text(x.text, *arguments))


def live_slots(attend_BS4: Any) -> Any:
    """Returns bool [B, S]: the slots that are not empty. An empty slot attends to nothing.

    attend_BS4  int32 [B, S, 4] or [B, S, N, 4], as in `Batch.attend`
    """
    if attend_BS4.ndim == 4:  # a slot that is not empty attends to itself in layers of every type
        attend_BS4 = attend_BS4[:, :, 0]
    return (attend_BS4[..., 1] > attend_BS4[..., 0]) | (attend_BS4[..., 3] > attend_BS4[..., 2])
