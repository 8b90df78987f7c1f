"""A run keeps the tokenizer that it began with."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest

from solo.config import ConfigError, TokenizerConfig
from solo.data.store.prepare import Prepared
from solo.data.text import open_tokenizer, train_tokenizer
from solo.files import COMMIT_MARKER
from solo.pipeline import _keep_tokenizer
from solo.training.run_folder import RunFolder


def test_a_run_is_not_resumed_with_another_tokenizer(tmp_path: Path) -> None:
    one, two = (
        Prepared(train_tokenizer([topics[name], topics["for"]], TokenizerConfig(vocab_size=350)), {})
        for name in ("if", "class")
    )
    run = RunFolder(tmp_path)
    _keep_tokenizer(run, one)
    _keep_tokenizer(run, two)  # nothing is trained yet
    checkpoint = run.checkpoints / "3"
    checkpoint.mkdir(parents=True)
    (checkpoint / COMMIT_MARKER).touch()
    _keep_tokenizer(run, two)
    with pytest.raises(ConfigError, match=r"was trained with another tokenizer .* choose another name"):
        _keep_tokenizer(run, one)
    assert open_tokenizer(tmp_path).fingerprint == two.tokenizer.fingerprint
