"""Preparations exclude each other, and do not change what a run reads."""

import multiprocessing
from contextlib import ExitStack
from pathlib import Path

import pytest

from solo.config import Config, ConfigError
from solo.data.store.access import TOKENIZER, changing, preparing, reading, source_content
from solo.data.store.prepare import open_prepared, prepare
from tests.data.store.test_prepare import LINES, TOPICS, config


def quiet(line: str) -> None:
    pass


def made_with(folder: Path, seed: int) -> Config:
    lines = LINES | {"limit": 400, "options": {"seed": seed}}
    return config(folder, {"lines": lines, "topics": TOPICS}, tokenizer={"vocab_size": 360, "train_on": ["topics"]})


def _prepare_until(barrier, folder: Path, seed: int, outcomes) -> None:
    barrier.wait()
    try:
        prepare(made_with(folder, seed))
        outcomes.put((seed, ""))
    except ConfigError as error:
        outcomes.put((seed, str(error)))


def test_two_preparations_at_once_leave_one_of_their_results(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier, outcomes = spawn.Barrier(2), spawn.Queue()
    both = [spawn.Process(target=_prepare_until, args=(barrier, tmp_path, seed, outcomes)) for seed in (1, 2)]
    for process in both:
        process.start()
    found = dict(outcomes.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    done = [seed for seed, refusal in found.items() if not refusal]
    assert all("is being prepared by process " in refusal for refusal in found.values() if refusal)
    opened = []
    for seed in done:
        try:
            source = open_prepared(made_with(tmp_path, seed)).sources["lines"]
        except ConfigError:
            continue
        opened.append([source.read(number).id for number in range(len(source))])
    assert [len(ids) for ids in opened] == [400]


def test_a_preparation_is_refused_while_another_one_runs(tmp_path):
    made = made_with(tmp_path, 1)
    with preparing(tmp_path / "data", quiet):
        with pytest.raises(
            ConfigError, match=r"data is being prepared by process \d+ on .* since .*; wait until it ends"
        ):
            prepare(made)
        assert not (tmp_path / "data" / "sources").exists()
    prepare(made)
    with preparing(tmp_path / "data", quiet):
        prepare(made)  # nothing to do


def test_data_that_a_run_reads_is_not_changed(tmp_path):
    sources = {"lines": LINES, "topics": TOPICS}
    tokenizer = {"vocab_size": 360, "train_on": ["topics"]}
    made = config(tmp_path, sources, tokenizer=tokenizer)
    prepare(made)
    folder = tmp_path / "data"
    with reading(folder, [TOKENIZER, source_content("lines"), source_content("topics")], quiet):
        prepare(made)  # nothing to do
        prepare(config(tmp_path, {**sources, "more": LINES | {"limit": 3}}, tokenizer=tokenizer))
        other = config(tmp_path, {**sources, "lines": LINES | {"limit": 13}}, tokenizer=tokenizer)
        with pytest.raises(ConfigError, match=r"would change source lines in .*data, which is in use by process \d+"):
            prepare(other)
        with pytest.raises(ConfigError, match=r"would change source lines in .*data, which is in use by process \d+"):
            prepare(config(tmp_path, sources, tokenizer=tokenizer | {"vocab_size": 370}))
        assert len(open_prepared(made).sources["lines"]) == 12
    assert len(prepare(other).sources["lines"]) == 13


def test_a_run_does_not_start_on_data_that_is_being_changed(tmp_path):
    with changing(tmp_path, source_content("lines"), quiet), ExitStack() as stack:
        stack.enter_context(reading(tmp_path, [TOKENIZER], quiet))
        with pytest.raises(ConfigError, match=r"source lines in .* is being changed by process"):
            stack.enter_context(reading(tmp_path, [source_content("lines")], quiet))


def test_hosts_that_share_a_preparation_exclude_others(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(preparing(tmp_path, quiet, shared=True))
        stack.enter_context(preparing(tmp_path, quiet, shared=True))
        with pytest.raises(ConfigError, match=r"is being prepared by process .* and process "):
            stack.enter_context(preparing(tmp_path, quiet))
    with preparing(tmp_path, quiet):
        pass
