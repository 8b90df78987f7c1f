"""Environment variables that keep libtpu quiet on hosts without a TPU. Nothing here imports jax."""

from __future__ import annotations

import os
from pathlib import Path

_GOOGLE = "0x1ae0"
_PCI_DEVICES = Path("/sys/bus/pci/devices")
# Without a TPU, libtpu asks the metadata server for these, and reports every failure on stderr.
_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
}


def quiet_libtpu() -> None:
    """Keep libtpu from searching for a TPU host. Variables that are set already are kept."""
    for name, value in _HOST.items():
        os.environ.setdefault(name, value)


def may_have_tpu(pci_devices: Path = _PCI_DEVICES) -> bool:
    """Returns whether this host may have a TPU: it has a PCI device of Google's, or its PCI devices are unknown."""
    try:
        vendors = {path.read_text().strip() for path in pci_devices.glob("*/vendor")}
    except OSError:
        return True
    return not vendors or _GOOGLE in vendors
