"""Compiler options are accepted by their compilers, and passed to them."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from solo.chips import CHIPS, Option
from solo.config import ConfigError, MeshConfig, SafetyConfig
from solo.sharding.compiling import compiler_options
from solo.sharding.mesh import make_mesh
from solo.training.step import make_stage
from tests.tiny import tiny_config
from tests.training.test_step import DEFINITION, VOCAB, batches, stage_config


class Device:
    """As much of a device as options are chosen by."""

    def __init__(self, kind: str):
        self.device_kind = kind


class Mesh:
    def __init__(self, kind: str):
        self.devices = np.array([Device(kind)])


def test_every_option_gives_its_reason() -> None:
    assert all(len(option.reason) > 20 for chip in CHIPS.values() for option in chip.compiler_options)


def test_options_of_the_config_override_those_of_the_chip() -> None:
    assert compiler_options(make_mesh(MeshConfig(), jax.devices()[:1])) == {}
    of_v5p = compiler_options(Mesh("TPU v5p"))
    assert of_v5p["xla_enable_async_all_gather"] == "true"
    changed = compiler_options(Mesh("TPU v5p"), {"xla_enable_async_all_gather": None, "xla_tpu_new": 3})
    assert changed == {**{k: v for k, v in of_v5p.items() if k != "xla_enable_async_all_gather"}, "xla_tpu_new": "3"}
    assert compiler_options(Mesh("NVIDIA H200"))["xla_gpu_enable_latency_hiding_scheduler"] is True
    kinds = ("TPU v5e", "TPU v5p", "TPU v6e")
    limits = [compiler_options(Mesh(kind)).get("xla_tpu_scoped_vmem_limit_kib") for kind in kinds]
    assert limits == ["65536", "49152", "98304"]


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3"])
def test_xla_knows_the_options_for_gpus(kind: str) -> None:
    """XLA reads the options of all platforms in every compiler, and refuses what it does not know."""
    double, x = jax.jit(lambda x: 2 * x), jnp.ones(2)
    options = compiler_options(Mesh(kind))
    assert double.lower(x).compile(compiler_options=options)(x).sum() == 4
    with pytest.raises(JaxRuntimeError, match="No such compile option"):
        double.lower(x).compile(compiler_options={**options, "xla_gpu_no_such_option": True})


def test_an_option_that_xla_no_longer_has_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Option("xla_gpu_lost_in_some_version", True, "was good for something once")
    h200 = CHIPS["h200"]
    monkeypatch.setitem(CHIPS, "h200", replace(h200, compiler_options=(lost, *h200.compiler_options)))
    with pytest.warns(UserWarning, match="xla_gpu_lost_in_some_version"):
        found = compiler_options(Mesh("NVIDIA H200"))
    assert found == {option.name: option.value for option in h200.compiler_options}
    # What the config asks for is never left out: the compiler refuses it by name.
    assert compiler_options(Mesh("cpu"), {lost.name: True}) == {lost.name: True}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra tpu)")
@pytest.mark.parametrize(
    ("chip", "topology"),
    [("v5e", "v5e:2x2"), ("v5p", "v5p:2x2x1"), ("v6e", "v6e:2x2"), ("tpu7x", "tpu7x:2x2x1")],
)
def test_libtpu_knows_the_options_for_tpus(chip: str, topology: str) -> None:
    code = (
        "import sys, jax, jax.numpy as jnp\n"
        "from jax.experimental.topologies import get_topology_desc\n"
        "from jax.sharding import SingleDeviceSharding\n"
        "from tests.sharding.test_flags import Mesh\n"
        "from solo.chips import CHIPS\n"
        "from solo.sharding.compiling import compiler_options\n"
        "devices = get_topology_desc(platform='tpu', topology_name=sys.argv[1], chip_config_name='default',"
        " chips_per_host_bounds=(2, 2, 1), num_slices=1).devices\n"
        "x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=SingleDeviceSharding(devices[0]))\n"
        "lowered = jax.jit(lambda x: 2 * x).lower(x)\n"
        "for options in ({}, *(trial.options for trial in CHIPS[sys.argv[3]].trials)):\n"
        "    lowered.compile(compiler_options=compiler_options(Mesh(sys.argv[2]), options))\n"
        "try: lowered.compile(compiler_options={'xla_tpu_no_such_option': 'true'})\n"
        "except jax.errors.JaxRuntimeError as error: sys.exit('No such compile option' not in str(error))\n"
        "sys.exit('not refused')"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    arguments = [sys.executable, "-c", code, topology, CHIPS[chip].device_kinds[-1], chip]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_step_is_compiled_with_the_options(tmp_path: Path) -> None:
    """An option that leaves something to be seen: the compiler writes the step that it was given."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def compiled(options: dict) -> None:
        stage = make_stage(DEFINITION, stage_config(), 5, SafetyConfig(), mesh, options)
        (batch,) = batches(1)
        stage.step.lower(stage.abstract, batch).compile()

    compiled({"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True})
    assert any(f"f32[{VOCAB},32]" in path.read_text() for path in tmp_path.glob("*jit_step*.txt"))
    with pytest.raises(JaxRuntimeError, match="No such compile option: 'xla_no_such_option'"):
        compiled({"xla_no_such_option": True})


def test_the_config_accepts_options() -> None:
    config = tiny_config(compiler_options={"xla_a": True, "xla_b": None, "xla_c": 3})
    assert config.compiler_options == {"xla_a": True, "xla_b": None, "xla_c": 3}
    with pytest.raises(ConfigError, match="compiler_options"):
        tiny_config(compiler_options={"xla_a": [1]})
