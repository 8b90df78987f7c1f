"""Loss terms: what is measured of a batch by name, and in how many chunks logits are computed."""

import jax
import numpy as np
import pytest

from solo.config import LossConfig, MeshConfig
from solo.model.placement import Placement
from solo.sharding.mesh import device_batch, make_mesh
from solo.sharding.placement import placement
from solo.training.losses import Mean, batch_loss, means, normalised_weights, targets_per_chunk
from tests.training.test_step import DEFINITION, batches


def computed(config: LossConfig, **options):
    (batch,) = batches(1)
    batch = batch._replace(target_weights=normalised_weights(batch.target_weights, config))
    parameters = DEFINITION.initialise(jax.random.key(0))

    def loss(parameters):
        return batch_loss(DEFINITION, Placement(), parameters, batch, config, sources=("a", "b"), **options)

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters))


def test_losses_by_source_and_by_context_add_up_to_the_mean_over_all_targets() -> None:
    (batch,) = batches(1)
    (loss, measured), _ = computed(LossConfig())
    for groups in (measured["loss_by_source"], measured["loss_by_context"]):
        assert len(groups) == 2
        total, count = (sum(getattr(group, field) for group in groups.values()) for field in ("total", "count"))
        assert count == (batch.target_weights > 0).sum()
        assert total / count == pytest.approx(loss, rel=1e-5)
        assert all(group.count > 0 for group in groups.values())
    # A target is in the context of an image if its slot sees a patch.
    sees = (batch.attend[..., 1] > batch.attend[..., 0]) & (batch.attend.max(axis=2) > 0)
    slots = np.take_along_axis(sees, batch.target_slots, axis=1) & (batch.target_weights > 0)
    assert measured["loss_by_context"]["with_image"].count == slots.sum()


def test_means_divide_once_and_leave_out_what_counts_nothing() -> None:
    one = np.float32(1)
    measured = {
        "a": Mean(3 * one, 2 * one),
        "by": {"x": Mean(one, 4 * one), "y": Mean(0 * one, 0 * one)},
        "ok": one > 0,
    }
    assert means(measured) == {"a": 1.5, "by": {"x": 0.25}, "ok": True}
    assert type(means(measured)["ok"]) is bool


@pytest.mark.parametrize(
    ("chunk_size", "rows", "slots", "vocab", "width"),
    [
        (None, 1, 1024, 32768, 1024),  # 128 MiB of logits exactly
        (None, 1, 1025, 32768, 513),  # two chunks, as even as they come
        (None, 4, 1024, 32768, 256),
        (None, 2, 456, 1024, 456),
        (None, 1, 1024, 2**30, 1),
        (512, 4, 2048, 7, 128),
        (100, 1, 256, 7, 86),
        (1, 8, 5, 7, 1),
    ],
)
def test_a_chunk_is_what_one_device_holds(chunk_size, rows, slots, vocab, width) -> None:
    assert targets_per_chunk(chunk_size, rows, slots, vocab) == width


@pytest.mark.parametrize("size", [40, 100])  # 5 and 13 of 64 slots in each of eight rows: with padding
def test_chunks_change_neither_loss_nor_gradients(size: int) -> None:
    ((loss, measured), grads), ((chunked, also), chunked_grads) = (
        computed(LossConfig()),
        computed(LossConfig(chunk_size=size)),
    )
    assert chunked == pytest.approx(loss, rel=1e-6)
    for one, other in zip(jax.tree.leaves(measured), jax.tree.leaves(also), strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    for path, gradient in grads.items():
        np.testing.assert_allclose(chunked_grads[path], gradient, atol=1e-5 * np.abs(gradient).max(), err_msg=path)


def test_the_size_of_a_chunk_counts_a_devices_own_rows_and_vocabulary() -> None:
    """Eight rows over four devices, 64 entries of the vocabulary over two: the loop over chunks shows their number."""
    (batch,) = batches(1)
    parameters = DEFINITION.initialise(jax.random.key(0))

    def lengths(where, batch, size) -> list[int]:
        jaxpr = jax.make_jaxpr(lambda p, b: batch_loss(DEFINITION, where, p, b, LossConfig(chunk_size=size))[0])
        eqns = jaxpr(parameters, batch).eqns
        return [eqn.params["length"] for eqn in eqns if eqn.primitive.name == "scan"]

    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
    here, there = Placement(), placement(mesh, DEFINITION.config)
    assert (there.row_shards, there.vocab_shards) == (4, 2)
    # The first loop is that over the layers.
    assert lengths(here, batch, 64)[1:] == [8]
    assert lengths(there, device_batch(batch, mesh), 64)[1:] == [2]
    assert lengths(there, device_batch(batch, mesh), 128)[1:] == []
