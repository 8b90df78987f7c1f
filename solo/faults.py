"""Translates errors of JAX and its compiler to a message for the user and an exit status."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from solo.statuses import FAILED, MISTAKE, TRANSIENT

_NO_BACKEND = "Unable to initialize backend"
# A process that was killed may still hold the devices; runtimes of accelerators start in any order.
_MAY_PASS = ("already in use", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED")
_NO_MEMORY = "RESOURCE_EXHAUSTED"
# How the messages of such errors begin.
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED): ")


class Fault(NamedTuple):
    """A message for the user, and the exit status of the command line."""

    text: str
    status: int


def fault_of(error: BaseException) -> Fault | None:
    """Returns the message for an error of JAX, or None if its traceback is more useful."""
    text = str(error)
    if _NO_BACKEND in text or _is_silent(error):
        return _no_devices(text)
    if text.startswith(_NO_MEMORY) and is_of_runtime(error):
        return _no_memory(text)
    return None


def is_of_runtime(error: BaseException) -> bool:
    """Returns whether JAX's runtime raised an error.

    A compiled function raises ValueError, with the same words, if it fails while it is called: for want of memory, or
    because another process is gone.
    """
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        return True
    return type(error) is ValueError and _STATUS.match(str(error)) is not None


def _is_silent(error: BaseException) -> bool:
    """JAX raises an AssertionError without a message for JAX_PLATFORMS=cuda without CUDA's plugin."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else trace.tb_frame.f_code.co_filename
    return isinstance(error, AssertionError) and not str(error) and os.path.basename(where) == "xla_bridge.py"


def _no_devices(text: str) -> Fault:
    asked = os.environ.get("JAX_PLATFORMS", "")
    reason = re.sub(rf"^{_NO_BACKEND} '[^']*': |\s*\(set JAX_PLATFORMS=.*$", "", text, flags=re.DOTALL).strip()
    because = f" ({reason})" if reason else ""
    if any(word in text for word in _MAY_PASS):
        return Fault(f"the devices cannot be used now{because}", TRANSIENT)
    if not asked:
        return Fault(f"JAX finds no devices{because}", MISTAKE)
    return Fault(
        f"JAX_PLATFORMS={asked}: this machine has no such devices, or JAX was installed without them{because}; unset"
        " the variable, so that JAX uses what it finds, or set JAX_PLATFORMS=cpu",
        MISTAKE,
    )


def _no_memory(text: str) -> Fault:
    first = next(line for line in text.splitlines() if line.strip()).removeprefix(f"{_NO_MEMORY}: ").rstrip(".: ")
    return Fault(
        f"the devices' memory does not suffice: {first}\n`solo plan CONFIG --on MACHINE` shows what needs it, and with"
        " --search FILE it looks for settings that fit; a lower batch_rows or row_slots, or more devices, need less",
        FAILED,
    )
