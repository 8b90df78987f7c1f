"""An option that the compiler refuses is named as it stands in the config."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError

from solo.chips import CHIPS, Option
from solo.config import ConfigError, MeshConfig
from solo.sharding.compiling import compile_lowered, compiler_options
from solo.sharding.mesh import make_mesh


def compile_with(changes: dict[str, Any]) -> float:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    double = jax.jit(lambda x: 2 * x, compiler_options=compiler_options(mesh, changes) or None)
    return float(compile_lowered(double.lower(jnp.float32(2)), mesh, changes)(jnp.float32(2)))


class Failing:
    """Lowered code whose compiler says something."""

    def __init__(self, message: str):
        self.message = message

    def compile(self, compiler_options: Any) -> None:
        raise JaxRuntimeError(self.message)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("xla_no_such_option", 3, "No such compile option: 'xla_no_such_option'; correct"),
        ("xla_dump_max_hlo_modules", "many", "'many' is not a valid int32 value; correct"),
        ("memory_fitting_effort", "low", "incompatible function arguments"),  # not an XLA flag: jax sets it
    ],
)
def test_the_option_is_named_and_why_it_is_refused(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compile_with({"xla_dump_hlo_as_text": False, "xla_dump_to": None, name: value})
    message = str(refusal.value)
    assert message.startswith(f"compiler_options.{name}: the compiler for cpu refuses it: ")
    assert reason in message
    assert "\n" not in message


def test_a_refused_option_of_a_chip_can_be_removed_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Option("xla_lost_in_some_version", True, "was good for something once")
    monkeypatch.setitem(CHIPS, "cpu", replace(CHIPS["cpu"], compiler_options=(lost,)))
    with pytest.raises(ConfigError, match=r"solo/chips.*compiler_options\.xla_lost_in_some_version=null"):
        compile_with({})
    assert compile_with({lost.name: None}) == 4.0


@pytest.mark.parametrize(
    ("message", "kind", "start"),
    [
        ("INVALID_ARGUMENT: Failed to parse 'x' into flag xla_a_b: ", ConfigError, "compiler_options.xla_a_b: the"),
        ("INVALID_ARGUMENT: the module has no entry", JaxRuntimeError, "INVALID_ARGUMENT: the module"),
        ("RESOURCE_EXHAUSTED: out of memory, see xla_a", JaxRuntimeError, "RESOURCE_EXHAUSTED"),
    ],
)
def test_only_whole_option_names_match_and_other_errors_pass(message: str, kind: type, start: str) -> None:
    lowered: Any = Failing(message)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(kind) as fault:
        compile_lowered(lowered, mesh, {"xla_a": 1, "xla_a_b": 2})
    assert str(fault.value).startswith(start)
    assert ": ;" not in str(fault.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (extra tpu)")
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("xla_tpu_no_such_option=true", "No such compile option"),
        ("xla_tpu_scoped_vmem_limit_kib=much", "Failed to parse 'much'"),
        ("xla_dump_hlo_as_text=3", "'3' is not a valid bool value"),
    ],
)
def test_libtpus_error_message_is_recognised(option: str, reason: str) -> None:
    settings = ("mesh.fsdp=1", "model.attention_implementation=blocks", f"compiler_options.{option}")
    words = ("plan", "configs/quickstart.yaml", *settings, "--on", "v5e-1", "--stage", "captions")
    done = subprocess.run(
        [sys.executable, "-m", "solo.cli", *words],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    start = f"solo: compiler_options.{option.partition('=')[0]}: the compiler for TPU v5 lite refuses it: "
    assert any(line.startswith(start) and reason in line for line in done.stderr.splitlines()), done.stderr
