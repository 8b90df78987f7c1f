"""A short run of the fuzzer; `python -m tests.fuzz.readers` makes a long one."""

from __future__ import annotations

from pathlib import Path

from solo.data.readers import reader_names
from tests.fuzz.cases import Case, names, reader_of, write
from tests.fuzz.checks import Found, check_source
from tests.fuzz.readers import fuzz, plan
from tests.fuzz.seeds import all_seeds
from tests.fuzz.sources import Source

GENERATED = {"digits", "lines", "pictograms", "scenes", "topics"}


def test_every_reader_is_fuzzed() -> None:
    assert {reader_of(name) for name in names()} == set(reader_names()) - GENERATED | {"images"}


def test_unchanged_sources_are_read(tmp_path: Path) -> None:
    for name, seed in all_seeds().items():
        folder = tmp_path / name
        for path, data in seed.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        found = Found()
        options = {key: _placed(value, folder) for key, value in seed.options[0].items()}
        check_source(Source(seed.reader, options, ()), found)
        assert not found.faults, name
        # An image's path is relative to an option that `auto` is not given here.
        assert found.records or (name.startswith("auto-") and (found.unreadable or found.refused)), name


def _placed(value: object, folder: Path) -> object:
    return value.replace("{folder}", str(folder)) if isinstance(value, str) else value


def test_an_input_follows_from_its_name(tmp_path: Path) -> None:
    first, second = (write(Case("image-PNG", 5), tmp_path / name) for name in "ab")
    assert first == second
    assert first != write(Case("image-PNG", 6), tmp_path / "a")


def test_some_hundred_inputs() -> None:
    inputs = plan(350, tfds=False)
    found = dict(fuzz(inputs, workers=2, seconds=60.0))
    assert found.keys() == set(inputs)
    assert {str(case): outcome.faults for case, outcome in found.items() if outcome.faults} == {}
    assert sum(outcome.records for outcome in found.values()) > 200
    assert sum(outcome.unreadable for outcome in found.values()) > 100
