"""Traces of steps, as their readers see them."""

import contextlib
import gzip
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from solo.config import ConfigError, ProfileConfig, parse_config
from solo.training.observer import Observer
from solo.training.profiler import Profiler
from tests.training.test_resume import CONFIG


def run_steps(profiler: Profiler, first: int, last: int, requested: int = 0) -> None:
    step = jax.jit(lambda x: x @ x).lower(jnp.ones((64, 64))).compile()
    with contextlib.closing(profiler):
        for number in range(first, last + 1):
            with profiler.step(number, number == requested):
                found = step(jnp.ones((64, 64)))
            profiler.done(number, found)


def traced(place: Path) -> list[int]:
    """Returns the steps that a trace annotates, as its reader in JAX finds them."""
    (file,) = place.glob("plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    events = [event for plane in data.planes for line in plane.lines for event in line.events]
    return sorted({dict(event.stats)["step_num"] for event in events if event.name == "train"})


def test_the_named_steps_are_traced_and_the_memory_is_stored(tmp_path: Path) -> None:
    said: list[str] = []
    run_steps(Profiler(ProfileConfig(steps=(3, 4)), tmp_path, said.append), 1, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    assert traced(tmp_path / "step-3") == [3, 4]
    assert b"space" in gzip.decompress((tmp_path / "step-3" / "memory.prof").read_bytes())
    assert said[0] == "tracing steps 3 to 4"
    assert str(tmp_path / "step-3") in said[1]


def test_a_run_that_resumes_or_ends_within_the_steps_traces_the_rest(tmp_path: Path) -> None:
    run_steps(Profiler(ProfileConfig(steps=(3, 9)), tmp_path, lambda text: None), 5, 6)
    assert traced(tmp_path / "step-5") == [5, 6]


def test_steps_are_traced_on_request(tmp_path: Path) -> None:
    run_steps(Profiler(ProfileConfig(), tmp_path, lambda text: None), 1, 8, requested=4)
    assert traced(tmp_path / "step-4") == [4, 5, 6]


def test_sigusr2_requests_a_trace() -> None:
    observer, before = Observer(), signal.getsignal(signal.SIGUSR2)
    observer.listen_for_profiles()
    try:
        assert not observer.profile_requested
        os.kill(os.getpid(), signal.SIGUSR2)
        assert observer.profile_requested
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_second_profiler_is_reported_and_does_not_stop_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    with jax.profiler.trace(str(tmp_path / "other")):
        run_steps(Profiler(ProfileConfig(steps=(1, 2)), tmp_path / "mine", said.append), 1, 3)
    assert len(said) == 1
    assert said[0].startswith("steps 1 to 2 are not traced: ")


def test_steps_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="the first step, 4, follows the last one, 3"):
        parse_config({**CONFIG, "profile": {"steps": [4, 3]}})
