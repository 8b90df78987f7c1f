"""libtpu reports nothing on a host without a TPU, and is left alone on one that may have a TPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solo.libtpu import may_have_tpu


def host(folder: Path, *vendors: str) -> Path:
    for number, vendor in enumerate(vendors):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "vendor").write_text(f"{vendor}\n")
    return folder


def test_a_host_has_no_tpu_only_if_its_devices_are_known(tmp_path: Path) -> None:
    assert not may_have_tpu(host(tmp_path / "intel", "0x8086", "0x1af4"))
    assert may_have_tpu(host(tmp_path / "google", "0x8086", "0x1ae0"))
    assert may_have_tpu(tmp_path / "none")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None or may_have_tpu(), reason="needs libtpu (extra tpu) and no TPU"
)
def test_libtpu_is_silent_without_a_tpu() -> None:
    code = "from solo.libtpu import quiet_libtpu; quiet_libtpu(); import jax; print(jax.devices()[0].platform)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_", "XLA_"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")
