"""Weights & Biases in offline mode, read back from the files that its library writes."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from solo.config import ConfigError, parse_config
from solo.training.metrics import MetricsStream, read_metrics
from solo.training.run_folder import RunFolder
from solo.training.wandb_board import WandbBoard, check_wandb
from tests.training.test_metrics import EVALUATED, lines_of
from tests.training.test_resume import CONFIG

wandb = pytest.importorskip("wandb")

SECRET = "0123456789abcdef" * 3


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunFolder:
    for name, value in (("WANDB_API_KEY", SECRET), ("WANDB_CONFIG_DIR", str(tmp_path / "home"))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "home"))
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def write(run: RunFolder, resume_step: int, lines: list[dict], **wanted) -> list[str]:
    told: list[str] = []
    config = parse_config({**CONFIG, "watch": {"wandb": {"project": "test", "mode": "offline", **wanted}}})
    assert config.watch.wandb is not None
    stream = MetricsStream(run, resume_step, 0, [WandbBoard(run, config, config.watch.wandb)], told.append)
    for line in lines:
        stream.write(line)
    stream.close()
    return told


def records(path: Path) -> Iterator[bytes]:
    """Yields the records of a file of W&B: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def logged(run: RunFolder) -> tuple[list[tuple[int, dict[str, float]]], set[str]]:
    """Returns what the files of all attempts hold, in order, and the ids of their runs."""
    from wandb.proto import wandb_internal_pb2

    found, ids = [], set()
    for path in sorted(run.path.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        for data in records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.run.run_id:
                ids.add(record.run.run_id)
            if items := record.history.item:
                values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                found.append((values["_step"], values))
    return found, ids


def test_the_lines_are_sent_once_to_one_run_over_restarts_without_the_key(run: RunFolder) -> None:
    assert write(run, 0, [*lines_of(1, 2, 3), EVALUATED, *lines_of(4, 5)]) == []
    assert write(run, 3, lines_of(4, 5, 6, 7)) == []
    end = time.monotonic() + 30
    while len(logged(run)[0]) < 7 and time.monotonic() < end:  # its process writes the file a little later
        time.sleep(0.05)
    found, ids = logged(run)
    assert len(ids) == 1
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [values["train/loss"] for _, values in found] == pytest.approx([step / 7 for step in range(1, 8)])
    assert found[2][1]["held_out/digits/loss"] == 0.5
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_without_a_key_the_run_goes_on_and_says_so_once(run: RunFolder, monkeypatch) -> None:
    # The library remembers the key of the test before, and would look for a network.
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    (told,) = write(run, 0, lines_of(1, 2), mode="online")
    assert told.startswith("Weights & Biases stopped showing lines: ")
    assert "WANDB_API_KEY" in told
    assert [line["step"] for line in read_metrics(run.metrics_file)] == [1, 2]


def test_a_missing_library_is_a_mistake_of_the_config(monkeypatch) -> None:
    monkeypatch.setattr("solo.training.wandb_board.find_spec", lambda name: None)
    config = parse_config({**CONFIG, "watch": {"wandb": {"project": "test"}}})
    with pytest.raises(ConfigError, match=r"pip install 'solo-vlm\[wandb\]'"):
        check_wandb(config)
    check_wandb(parse_config(CONFIG))
