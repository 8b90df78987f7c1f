"""Fuzzes the readers, preparation and the decoding of images: `python -m tests.fuzz.readers --inputs 20000`.

Every input is made from its name and number, so `--only llava-lines:17` makes it again. The files of those that break a
promise stay in the folder `--failures`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.data.vocabularies import byte_level_json, write_repository
from tests.fuzz import cases
from tests.fuzz.cases import Case, reader_of
from tests.fuzz.checks import Found
from tests.fuzz.pool import run_all

_SHARES = {"tfds": 0.4, "auto": 0.3, "images": 1.0}  # of the inputs of a seed, where each costs more or tells less

_SHOWN = 2  # faults of a kind that are printed


def plan(inputs: int, tfds: bool = True, first: int = 0) -> list[Case]:
    """Returns this many inputs, divided among the seeds."""
    shares = {name: _SHARES.get(reader_of(name), 1.0) for name in cases.names(tfds)}
    total = sum(shares.values())
    counts = {name: int(inputs * share / total) for name, share in shares.items()}
    left = inputs - sum(counts.values())
    for name in sorted(counts, key=lambda name: -shares[name])[:left]:
        counts[name] += 1
    return [Case(name, first + number) for name, count in counts.items() for number in range(count)]


def fuzz(found_cases: Sequence[Case], workers: int, seconds: float) -> Iterator[tuple[Case, Found]]:
    """Yields every input with what was found."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        tokenizer = write_repository(folder / "tokenizer", names, tokenizer_json=byte_level_json())
        yield from run_all(found_cases, folder, tokenizer, workers, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table, and every fault. Returns the exit status: 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of every seed")
    parser.add_argument("--seeds", nargs="*", help="names of seeds; default: all")
    parser.add_argument("--only", nargs="*", help="inputs, such as llava-lines:17")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="that an input may take")
    parser.add_argument("--failures", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    if chosen.only:
        inputs = [Case(name.rpartition(":")[0], int(name.rpartition(":")[2])) for name in chosen.only]
    else:
        inputs = plan(chosen.inputs, first=chosen.first)
        inputs = [case for case in inputs if not chosen.seeds or case.seed in chosen.seeds]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    faults = dict[Case, Found]()
    kinds = Counter[str]()
    begun = time.monotonic()
    for number, (case, found) in enumerate(fuzz(inputs, chosen.workers, chosen.seconds), start=1):
        counts[reader_of(case.seed)].update(
            inputs=1,
            prepared=int(case.number % cases.PREPARED_EVERY == 0 and reader_of(case.seed) != "images"),
            records=found.records,
            unreadable=found.unreadable,
            refused=int(bool(found.refused)),
            faults=int(bool(found.faults)),
        )
        if found.faults:
            faults[case] = found
            kinds.update([kind(found.faults[0])])
            if kinds[kind(found.faults[0])] <= _SHOWN:
                print(f"\n{case}: {found.faults[0][-1500:]}", flush=True)
        if number % 1000 == 0:
            print(f"{number:,} inputs, {len(faults)} with faults, {time.monotonic() - begun:.0f} s", flush=True)
    columns = ("inputs", "prepared", "records", "unreadable", "refused", "faults")
    print(f"\n{'':<12}" + "".join(f"{column:>12}" for column in columns))
    for name, row in sorted(counts.items()):
        print(f"{name:<12}" + "".join(f"{row[column]:>12,}" for column in columns))
    total = sum(counts.values(), Counter[str]())
    print(f"{'all':<12}" + "".join(f"{total[column]:>12,}" for column in columns))
    for name, count in kinds.most_common():
        print(f"{count:,} faults of a kind: {name}")
    if faults and chosen.failures:
        keep(faults, chosen.failures)
    return int(bool(faults))


def kind(fault: str) -> str:
    """Returns what faults of one kind have in common: where an error was raised, or the words of a fault."""
    places = re.findall(r'File ".*?([^/"]+)", line (\d+)', fault)
    return ":".join(places[-1]) if places else re.sub(r"\d+|'.*|\(.*", "", fault)[:60]


def keep(faults: dict[Case, Found], folder: Path) -> None:
    """Writes the files of inputs again, each with its faults."""
    for case, found in faults.items():
        made = folder / f"{case.seed}-{case.number}"
        cases.write(case, made)
        (made / "faults.txt").write_text("\n".join(found.faults), encoding="utf-8", errors="backslashreplace")
    print(f"their files are in {folder}")


if __name__ == "__main__":
    sys.exit(main())
