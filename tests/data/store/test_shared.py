"""Hosts that divide a preparation, and Apache Beam, give the bytes of one machine."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from solo.cli import main
from solo.config import Config, ConfigError, TokenizerConfig, dump_config
from solo.data.store.access import preparing, preparing_shard
from solo.data.store.prepare import open_prepared, prepare
from solo.data.store.progress import Watcher
from solo.data.store.shared import Shard, prepare_shard, prepare_with_beam
from solo.data.text import train_tokenizer
from tests.data.store import test_restart
from tests.data.store.test_access import quiet
from tests.data.store.test_prepare import state


def made(folder: Path, trained: bool) -> Config:
    """One source has a limit, which lies within a part."""
    if trained:
        found = test_restart.made(folder)
    else:
        if not (folder / "tokenizer.model").exists():
            train_tokenizer([topics["if"], topics["for"]], TokenizerConfig(vocab_size=350)).save(folder)
        found = test_restart.made(folder, tokenizer={"path": str(folder / "tokenizer.model")})
    limited = found.data.sources["chat"].model_copy(update={"limit": 48})
    data = found.data.model_copy(update={"sources": {**found.data.sources, "chat": limited}})
    return found.model_copy(update={"data": data})


@pytest.mark.parametrize("trained", [True, False])
def test_shards_give_the_bytes_of_one_machine(tmp_path, trained):
    prepare(made(tmp_path, trained))
    whole = state(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "before")
    shared = made(tmp_path, trained)
    shards = [Shard(index, 3) for index in (2, 0, 1)]
    found = [prepare_shard(shared, shard, 1, Watcher()) for shard in shards]
    assert [prepared is not None for prepared in found] == [False, False, True]
    assert {name: data for name, data in state(tmp_path / "data").items() if "shard" not in name} == whole
    assert prepare_shard(shared, shards[0], 1, Watcher()) is not None  # nothing to do


def test_shards_at_the_same_time(tmp_path):
    shared = made(tmp_path, trained=False)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda index: prepare_shard(shared, Shard(index, 3), 1, Watcher()), range(3)))
    assert any(prepared is not None for prepared in found)
    assert len(open_prepared(shared, inputs=True).sources["chat"]) == 48


def test_a_shard_has_one_host(tmp_path):
    shared = made(tmp_path, trained=True)
    with ExitStack() as stack:
        stack.enter_context(preparing(tmp_path / "data", quiet, shared=True))
        stack.enter_context(preparing_shard(tmp_path / "data", "0/2", quiet))
        with pytest.raises(ConfigError, match=r"shard 0/2 of .*data is being prepared by .*give each host its own"):
            prepare_shard(shared, Shard(0, 2), 1, Watcher())
        with pytest.raises(ConfigError, match="is being prepared by"):
            prepare(shared)


@pytest.mark.parametrize("text", ["8/8", "1", "-1/2", "a/b", "0/0"])
def test_shards_that_do_not_exist(tmp_path, capsys, text):
    (tmp_path / "config.yaml").write_text(dump_config(made(tmp_path, trained=True)))
    assert main(["prepare", str(tmp_path / "config.yaml"), f"--shard={text}"]) == 2
    assert "with i from 0 to n - 1" in capsys.readouterr().err


@pytest.mark.parametrize("trained", [True, False])
def test_beam_gives_the_bytes_of_local_preparation(tmp_path, trained):
    pytest.importorskip("apache_beam")
    prepare(made(tmp_path, trained))
    whole = state(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "before")
    prepared = prepare_with_beam(made(tmp_path, trained), ["--runner=DirectRunner"], Watcher())
    assert len(prepared.sources["chat"]) == 48
    assert state(tmp_path / "data") == whole


def test_checksums_are_verified(tmp_path, capsys):
    shared = made(tmp_path, trained=True)
    (tmp_path / "config.yaml").write_text(dump_config(shared))
    check = ["prepare", str(tmp_path / "config.yaml"), "--check"]
    assert main(check) == 2
    prepare(shared)
    assert main(check) == 0
    assert "chat: 48 records, all checksums are right" in capsys.readouterr().out
    damaged = next((tmp_path / "data" / "sources" / "chat" / "parts").glob("*.images"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    assert main(check) == 2
    said = capsys.readouterr().err
    assert "prepared data is damaged; remove these files and run: solo prepare CONFIG\n" in said
    assert f"{damaged} is damaged: its checksum differs" in said
    damaged.unlink()
    prepare(shared)
    assert main(check) == 0
