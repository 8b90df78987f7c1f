"""Replica groups in all their notations, and the mesh axes that they run along."""

import numpy as np
import pytest

from solo.planning.groups import axes_of, replica_groups

MESH = {"replica": 1, "data": 2, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("attributes", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}, dimensions={0}", ("tensor",)),
        ("replica_groups=[8,2]<=[16], dimensions={0}", ("tensor",)),
        ("channel_id=3, replica_groups=[4,4]<=[2,4,2]T(0,2,1), use_global_device_ids=true", ("fsdp",)),
        ("replica_groups=[2,8]<=[16], to_apply=%add", ("fsdp", "tensor")),
        ("replica_groups=[8,2]<=[2,8]T(1,0)", ("data",)),
        ("replica_groups={}, to_apply=%add", ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['x'=2,'y'=4,'z'=2] {'y'}, use_global_device_ids=true", ("fsdp",)),
        ("replica_groups=mesh['x'=16] {'x':(2)4}, dimensions={0}", ("fsdp",)),
        ("replica_groups=mesh['x'=2,'y'=8], device_ids=([8,2]T(1,0)) {'x'}, to_apply=%add", ("tensor",)),
        ("source_target_pairs={{0,8},{8,0}}, channel_id=1", ("data",)),
    ],
)
def test_groups_run_along_the_axes_that_they_span(attributes: str, axes: tuple) -> None:
    assert axes_of(replica_groups(attributes, 16), MESH) == axes


def test_iota_groups_are_transposed_before_they_are_split() -> None:
    assert replica_groups("replica_groups=[4,2]<=[2,4]T(1,0)", 8).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_every_device_is_in_one_group() -> None:
    for text in ("[4,4]<=[2,4,2]T(0,2,1)", "mesh['x'=2,'y'=4,'z'=2] {'x','z'}", "mesh['x'=16] {'x':(2)4}"):
        assert np.sort(replica_groups(f"replica_groups={text}", 16).ravel()).tolist() == list(range(16)), text


def test_attributes_without_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="no replica groups"):
        replica_groups("dimensions={0}", 8)
