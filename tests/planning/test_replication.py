"""A mesh axis that does not divide a dimension is named, and refused where replication costs too much."""

from math import prod

import pytest

from solo.config import ConfigError, MeshConfig, load_config
from solo.machines import parse_machine
from solo.model.parameters import define
from solo.planning.memory import memory_limit
from solo.planning.replication import MAX_REPLICATED_SHARE, check_replication, replications
from solo.sharding.axes import mesh_sizes
from tests.tiny import tiny_config


def test_a_mesh_that_divides_every_dimension_gives_no_note() -> None:
    config = load_config("configs/plans/solo_7b_8k.yaml")
    definition = define(config, config.model.vocab_size)
    v5e = parse_machine("v5e-256")
    assert check_replication(config, definition, v5e.devices, memory_limit(v5e)) == []


def test_a_width_that_fsdp_does_not_divide_is_refused_with_the_way_out() -> None:
    config = load_config("configs/plans/solo_7b_8k.yaml", ["mesh.fsdp=192"])
    definition = define(config, config.model.vocab_size)
    v5p = parse_machine("v5p-384")
    with pytest.raises(ConfigError, match=r"mesh.fsdp 192 does not divide embed 4,096: \d+ parameters") as refused:
        check_replication(config, definition, v5p.devices, memory_limit(v5p))
    assert f"more than {MAX_REPLICATED_SHARE:.0%} of the" in str(refused.value)
    assert "set mesh.fsdp=64, which divides embed 4,096, and mesh.data=3" in str(refused.value)
    # Without a known memory it is only named.
    (line,) = check_replication(config, definition, v5p.devices, None)
    assert "replicated over fsdp" in line


def test_the_cost_is_the_memory_beyond_an_even_shard() -> None:
    config = tiny_config(mesh={"fsdp": 3})
    definition = define(config, 100)
    (found,) = replications(definition, mesh_sizes(MeshConfig(fsdp=3), 3))
    embed = [spec for spec in definition.specs.values() if "embed" in spec.axes]
    elements = sum(prod(spec.shape) for spec in embed)
    assert found.parameters == len(embed)
    assert found.cost == pytest.approx(elements * 12 * 2 / 3, abs=12 * len(embed))
    small = found.cost / MAX_REPLICATED_SHARE
    assert check_replication(config, definition, 3, int(small) + 1) == [str(found)]
    with pytest.raises(ConfigError, match="per device"):
        check_replication(config, definition, 3, int(small) - 10)
