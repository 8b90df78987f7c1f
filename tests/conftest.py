"""Eight virtual devices for every test, and fixtures that several test modules share."""

import os

# Before jax is imported for the first time. Unoptimised code compiles twice as fast, and tests mostly compile.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# The compiler for TPUs may be installed; its TPUs are not looked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

from solo.config import TokenizerConfig
from solo.data.text import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """310 tokens, trained on a few words."""
    words = "a the red green blue circle square triangle left right above of is what which colour shape digit this how"
    texts = [" ".join(words.split()[number:] + words.split()[:number]) + "?" for number in range(20)]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=310))
