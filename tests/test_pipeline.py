"""A run keeps the tokenizer and the records that it began with."""

import json
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from solo.config import Config, ConfigError, TokenizerConfig, load_config
from solo.data.store.prepare import Prepared, prepare
from solo.data.text import open_tokenizer, train_tokenizer
from solo.files import COMMIT_MARKER
from solo.pipeline import _data, _keep_order, _keep_tokenizer, _lock
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder


def test_a_run_is_not_resumed_with_another_tokenizer(tmp_path: Path) -> None:
    one, two = (
        Prepared(train_tokenizer([topics[name], topics["for"]], TokenizerConfig(vocab_size=350)), {})
        for name in ("if", "class")
    )
    run = RunFolder(tmp_path)
    _keep_tokenizer(run, one)
    _keep_tokenizer(run, two)  # nothing is trained yet
    save_checkpoint(run)
    _keep_tokenizer(run, two)
    with pytest.raises(ConfigError, match=r"was trained with another tokenizer .* choose another name"):
        _keep_tokenizer(run, one)
    assert open_tokenizer(tmp_path).fingerprint == two.tokenizer.fingerprint


def test_a_file_where_the_folder_would_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match=r"/run is a file, where the run's folder would be"):
        _lock(RunFolder(tmp_path / "run"), ExitStack(), pytest.fail)


def save_checkpoint(run: RunFolder) -> None:
    checkpoint = run.checkpoints / "3"
    checkpoint.mkdir(parents=True)
    (checkpoint / COMMIT_MARKER).touch()


CONFIG = """
name: run
data:
  folder: {folder}/prepared
  tokenizer: {{vocab_size: 400, train_on: [lines]}}
  sources: {{lines: {folder}/lines.jsonl, others: {folder}/others.jsonl}}
model: {{width: 16, layers: 1, heads: 2, kv_heads: 2, ffn_width: 16}}
stages: [{{name: only, mixture: {{lines: 1.0}}, steps: 4, batch_rows: 2, row_slots: 64,
  optimizer: {{learning_rate: 0.001}}}}]
"""


def test_a_run_is_not_resumed_with_other_records(tmp_path: Path) -> None:
    def write(name: str, texts: list[str]) -> None:
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def made(**data: object) -> tuple[Config, Prepared]:
        config = load_config(tmp_path / "run.yaml", [f"data.{key}={value}" for key, value in data.items()])
        return config, prepare(config)

    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path))
    texts = [text[: 40 + number] for number, text in enumerate(topics.values())]
    write("lines.jsonl", texts)
    write("others.jsonl", texts)
    run = RunFolder(tmp_path / "run")
    _keep_order(run, *made())
    save_checkpoint(run)
    write("others.jsonl", texts[:30])  # no stage draws from it
    _keep_order(run, *made(records_per_shard=7))
    write("lines.jsonl", texts[::-1])
    with pytest.raises(ConfigError, match=r"other records of lines: .* choose another name"):
        _keep_order(run, *made())
    write("lines.jsonl", texts)
    _keep_order(run, *made())


@pytest.mark.parametrize(("processes", "check"), [(1, "time"), (1, "none"), (2, "time"), (2, "none")])
def test_a_resumed_run_tells_that_a_source_has_grown(tmp_path: Path, monkeypatch, processes: int, check: str) -> None:
    """It goes on with the records that it began with, until `solo prepare`."""
    (tmp_path / "in-a").mkdir()
    texts = "".join(json.dumps({"text": text}) + "\n" for text in topics.values())
    for name in ("in-a/0.jsonl", "in-a/1.jsonl", "others.jsonl"):
        (tmp_path / name).write_text(texts)
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path).replace("lines.jsonl", "in-*/*.jsonl"))
    config = load_config(tmp_path / "run.yaml", [f"data.input_check={check}"])
    before = prepare(config).sources["lines"].description.order
    run = RunFolder(tmp_path / "run")
    save_checkpoint(run)
    (tmp_path / "in-b").mkdir()
    (tmp_path / "in-b/2.jsonl").write_text(texts)
    (tmp_path / "in-a/0.jsonl").unlink()
    monkeypatch.setattr("solo.pipeline.among_others", lambda: processes > 1)
    said: list[str] = []
    with ExitStack() as stack:
        found = _data(config, run, Observer(), stack, said.append)
    assert said == ["source lines: 1 new files, 1 missing since it was prepared; run solo prepare to take them up"]
    assert found.sources["lines"].description.order == before
