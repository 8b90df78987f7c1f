"""Environments for packages that do not fit into ours."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOLO = Path(__file__).parents[2]
TORCH = "torch==2.13.0"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}


def environment(folder: Path, packages: Sequence[str], without: Sequence[str] = ()) -> Path:
    """Makes a virtual environment unless there is one. Returns its folder of programs.

    Args:
        folder: its place.
        packages: requirements, besides PyTorch.
        without: packages to remove again: requirements whose wheels only work with another build of PyTorch.
    """
    programs = folder / "bin"
    if not programs.is_dir():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [programs / "python", "-m", "pip"]
        subprocess.run([*pip, "install", "-q", TORCH, *packages], check=True)
        if without:
            subprocess.run([*pip, "uninstall", "-q", "-y", *without], check=True)
    return programs


def started(command: Sequence[object], **variables: str) -> str:
    """Runs a program without a network. Returns what it printed. Raises RuntimeError with that if it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        env=clean | OFFLINE | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout
