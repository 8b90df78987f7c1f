"""Eight virtual devices for every test, compiled programs that all of them share, and fixtures."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

from tests.compiler import QUICK

# Before jax is imported for the first time.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"
# The compiler for TPUs may be installed; its TPUs are not looked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most tests train the same tiny models, and most of their time is compilation. pytest-xdist's workers and the processes
# that tests start inherit the folder.
os.environ["SOLO_TESTS"] = os.environ.get("SOLO_TESTS") or tempfile.mkdtemp(prefix="solo-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["SOLO_TESTS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

from solo.config import TokenizerConfig
from solo.data.text import Tokenizer, train_tokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first. At the end, a worker would run the last of them while the others are idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


# XLA maps memory for every compiled program. Linux allows a process 65,530 maps; beyond them, XLA ends it with a
# segmentation fault.
_MOST_MAPS = 25_000


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drops compiled programs between files once a worker has many. Shared ones are read from the cache again."""
    maps = Path("/proc/self/maps")
    last = nextitem is None or nextitem.path != item.path
    if last and maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ and "solo-tests-" in os.environ["SOLO_TESTS"]:
        shutil.rmtree(os.environ["SOLO_TESTS"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """310 tokens, trained on a few words."""
    words = "a the red green blue circle square triangle left right above of is what which colour shape digit this how"
    texts = [" ".join(words.split()[number:] + words.split()[:number]) + "?" for number in range(20)]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=310))
