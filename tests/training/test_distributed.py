"""What processes tell each other, and how they end; tests/launch/test_processes.py trains in several."""

import argparse
import os
import subprocess
import sys

import jax
import pytest

from solo import cli
from solo.config import ConfigError
from solo.statuses import FAILED, MISTAKE, TRANSIENT, TransientError
from solo.training import distributed
from solo.training.checkpoint import CheckpointError
from solo.training.distributed import first_then_others, stop_agreed, wait_for_all
from tests.training.test_roll_call import free_port


def test_a_single_process_waits_for_nothing() -> None:
    wait_for_all()
    assert first_then_others(lambda: 1, lambda: 2) == 1
    assert [stop_agreed(requested) for requested in (False, True)] == [False, True]


def test_a_save_that_another_process_broke_waits_for_the_end_of_the_run(monkeypatch, capsys) -> None:
    """Its own status, 1, would tell the launcher that a restart does not help."""
    waits: list[float] = []
    monkeypatch.setattr(distributed, "among_others", lambda: True)
    monkeypatch.setattr(distributed.time, "sleep", waits.append)
    for cause, waited in (
        (jax.errors.JaxRuntimeError("UNAVAILABLE: a task died"), 1),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 1),  # at a compiled function's call
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory"), 0),
        (OSError(28, "No space left on device"), 0),
        (ValueError("DATA_LOSS: not a number"), 0),  # TensorStore
    ):
        waits.clear()
        try:
            raise CheckpointError("could not save") from cause
        except CheckpointError as error:
            distributed.wait_for_dead_process(error)
        assert len(waits) == waited, cause
    assert "solo: could not save\nsolo: waiting to see whether another process died" in capsys.readouterr().err


class Values:
    """Stands in for the client of the coordination service, for one process after the other."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        self.held[key] = value

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        return self.held[key]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("wrong"), MISTAKE), (TransientError("the bucket fails"), TRANSIENT), (OSError("no disk"), FAILED)],
)
def test_the_other_processes_end_with_the_status_of_the_first(monkeypatch, error: Exception, status: int) -> None:
    """Whichever of them ends first, the launcher restarts, or not."""
    values = Values()
    monkeypatch.setattr(distributed, "_client", lambda: values)
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    distributed._tell("key", error)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(Exception, match=f"process 0: {error}") as raised:
        distributed._raise_told("key")

    def verb(parsed: argparse.Namespace) -> int:
        raise raised.value

    assert cli._run(argparse.Namespace(verb=verb)) == status


# Process 1 learns of the error, but is slow to end; its busy computer may not run it for a while.
_SLOW_TO_END = """
import sys, time
from solo.config import ConfigError
from solo.training.distributed import end_at_once, first_then_others, join

def first():
    raise ConfigError("wrong")

hosts = join()
try:
    first_then_others(first, lambda: None)
except ConfigError as error:
    print(error, flush=True)
    time.sleep(2 * hosts.index)
    end_at_once(2)
"""


def test_process_0_ends_after_the_others_that_know_of_its_error(tmp_path) -> None:
    """JAX would abort them after its end: 134, which launchers restart, instead of 2."""
    hosts = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SLOW_TO_END],
            env={**os.environ, **hosts, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert [text.splitlines()[-1] for text in said] == ["wrong", "process 0: wrong"]
