"""SIGTERM to a process that listens for it; tests/training/test_sigterm.py runs `solo train`."""

import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes, os, signal, sys, threading, time
import solo.training.stopping as stopping
stopping.PATIENCE_SECONDS, stopping.ENDING_SECONDS = 0.2, 0.6

def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)

def stuck():
    "Does not return to Python, as libraries may do."
    threading.Timer(0.1, sigterm).start()
    library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)

def prepares():
    sigterm()
    time.sleep(600)

def trains():
    with stop.noted():
        sigterm()
        sigterm()
        time.sleep(1)
        print("saved", flush=True)
        with stop.at_once():
            print("never")

def compiles():
    with stop.noted(), stop.at_once(lambda: print("saved", flush=True)):
        stuck()

def cleans_up():
    try:
        sigterm()
    finally:
        time.sleep(600)

stop = stopping.Stop()
try:
    with stop.listening():
        globals().get(sys.argv[1], lambda: None)()
except stopping.Interrupted:
    print("interrupted")
    sys.exit(42)
"""


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("prepares", "interrupted\n"),
        ("trains", "saved\ninterrupted\n"),
        ("stuck", ""),
        ("compiles", "saved\n"),  # what is under way is completed first
        ("cleans_up", ""),
    ],
)
def test_sigterm_ends_every_phase(phase: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, phase], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (42, said), done.stderr
    assert ("solo: stopped by SIGTERM" in done.stderr) == ("interrupted" not in said)
    assert "Traceback" not in done.stderr


def test_a_run_that_has_ended_does_not_listen() -> None:
    program = _PROGRAM + "\nsigterm()\n"
    done = subprocess.run([sys.executable, "-c", program, "print"], capture_output=True, text=True, timeout=60)
    assert done.returncode == -15
