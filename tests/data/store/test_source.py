"""Prepared sources: parts, assembled, give the records and pieces of records that were written."""

import json
import multiprocessing
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError, ImageConfig, SequenceConfig
from solo.data.readers import Ignored, Unreadable
from solo.data.record import Image, Place, Record, Turn, encode_png
from solo.data.rows.document import Document, encode, runs
from solo.data.store import source as module
from solo.data.store.description import Description
from solo.data.store.source import PreparedSource
from tests.data.fakes import CharacterTokenizer
from tests.data.store.parts import write_source
from tests.data.store.test_index import random_image, random_turns


def record(number: int) -> Record:
    image = encode_png(PillowImage.new("RGB", (number % 7 + 1, 4), (number % 256, 0, 0)))
    turns = (Turn("user", (image, f"question {number}")), Turn("assistant", ("é" * number,), learned=number != 3))
    return Record(f"é{number}", (*turns, Turn("text", ("end",))), Place("all.jsonl", number + 1))


def split(records: list[Record], size: int) -> list[list[Record]]:
    return [records[start : start + size] for start in range(0, len(records), size)]


@pytest.mark.parametrize(("count", "size"), [(1, 5), (5, 5), (6, 5), (70, 40)])
def test_round_trip(tmp_path, count, size):
    records = [record(number) for number in range(count)]
    source = write_source(tmp_path, *split(records, size))
    assert len(source) == len(source.index) == count
    order = random.Random(0).sample(range(count), count)
    assert [source.read(number) for number in order] == [records[number] for number in order]
    assert [source.read(number).place for number in order] == [records[number].place for number in order]
    assert [source.id(number) for number in order] == [records[number].id for number in order]
    for number in (-1, count):
        with pytest.raises(IndexError, match=f"record {number} of .*, which has {count}"):
            source.read(number)


def test_description(tmp_path):
    examples = [record(0), Unreadable("bad", "it is bad", Place("all.jsonl", 2)), Ignored("score"), record(1)]
    source = write_source(tmp_path, examples, [record(2)])
    found = source.description
    assert Description.read(tmp_path) == found
    assert (found.fingerprint, found.tokens, found.records, found.quarantined, found.filtered) == (
        "settings",
        "tok",
        3,
        1,
        {},
    )
    # <s> and three role tokens; "question n", n times é, </s>, "end" and </s>
    assert (found.images, found.distinct_images) == (3, 3)
    assert found.supervised_tokens == (0 + 1 + 2) + 3 * (1 + 3 + 1)
    assert found.text_tokens == found.supervised_tokens + 3 * (1 + 2 + len("question n"))
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "source": "test",
        "id": "bad",
        "reason": "it is bad",
        "file": "all.jsonl",
        "line": 2,
    }


def same(one: Document, other: Document) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("tokens", "supervised", "image", "patches", "patch_grid")
    )


@pytest.mark.parametrize("seed", range(40))
def test_chunks_are_those_of_the_whole_document(tmp_path, seed):
    draw, tokenizer = random.Random(seed), CharacterTokenizer()
    image = random_image(draw)
    sequence = SequenceConfig(template=draw.choice(["roles", "solo_pretrain", "solo_chat", "internlm2_chat", "chatml"]))
    records = [Record(str(number), tuple(random_turns(draw))) for number in range(12)]
    records.append(Record("sure", (Turn("text", ("abc",)),)))
    count = len(records)
    excluded = sorted(draw.sample(range(count - 1), draw.choice([0, 0, 3])))
    source = write_source(tmp_path, *split(records, 5), excluded=excluded, sequence=sequence)
    refused = {json.loads(line)["id"] for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()}
    kept = [one for number, one in enumerate(records) if number not in excluded and one.id not in refused]
    assert [source.id(number) for number in range(len(source))] == [one.id for one in kept]
    assert source.description.quarantined == len(refused)
    for number, one in enumerate(kept):
        whole = encode(runs(one.turns, tokenizer, config=sequence), tokenizer, image)
        length = len(whole.tokens)
        assert source.read(number) == one
        assert same(encode(source.whole(number), tokenizer, image), whole)
        cuts = [(0, length), *(sorted(draw.choices(range(length + 1), k=2)) for _ in range(6))]
        for start, stop in cuts:
            piece = source.chunk(number, start, stop, image)
            assert piece.length == length
            found = encode(piece.parts, tokenizer, image, piece.images, piece.first_image)
            assert same(found.chunk(piece.skip, piece.skip + stop - start), whole.chunk(start, stop))
            assert len(found.tokens) >= stop - start


def test_a_chunk_reads_its_own_tokens_and_images_alone(tmp_path, monkeypatch):
    pictures = [encode_png(PillowImage.new("RGB", (8, 8), (shade, 0, 0))) for shade in range(30)]
    content = [part for picture in pictures for part in (picture, "x" * 50_000)]
    source = write_source(tmp_path, [Record("long", (Turn("text", tuple(content)),))])
    image = ImageConfig(patch_size=4, max_side=8)
    read: list[int] = []
    original = module.read_checked

    def counted(file, start, stop, sums):
        read.append(stop - start)
        return original(file, start, stop, sums)

    images: list[int] = []
    monkeypatch.setattr(module, "read_checked", counted)
    monkeypatch.setattr(PreparedSource, "_image", lambda self, number: images.append(number) or pictures[number])
    per_picture = 50_000 + 4 + 3  # patches, delimiters and a row token
    start = 1 + 3 * per_picture - 10
    piece = source.chunk(0, start, start + 30, image)
    assert images == [3]
    assert sum(read) == 4 * (30 - 7)
    assert (piece.first_image, piece.images, piece.skip) == (3, 30, 0)


def test_a_folder_without_a_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no prepared source"):
        PreparedSource(tmp_path)
    for text in ("{", "[]", '{"fingerprint": "of an older format"}'):
        (tmp_path / "source.json").write_text(text)
        assert Description.read(tmp_path) is None


def test_threads_share_a_source(tmp_path, monkeypatch):
    for name in ("_shard", "_token_file"):  # files are closed while other threads read
        monkeypatch.setattr(module, name, lru_cache(2)(getattr(module, name).__wrapped__))
    records = [record(number) for number in range(60)]
    source = write_source(tmp_path, *split(records, 7))
    image = ImageConfig(patch_size=4, max_side=8)
    order = random.Random(0).choices(range(60), k=1500)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, order)) == [records[number] for number in order]
        pieces = list(pool.map(lambda number: source.chunk(number, 0, 10, image), order))
    assert [piece.parts[1] for piece in pieces] == [records[number].images()[0] for number in order]


def test_a_spawned_process_reads_a_source(tmp_path):
    records = [record(number) for number in range(5)]
    source = write_source(tmp_path, *split(records, 2))
    source.read(0)
    assert len(pickle.dumps(source)) < 500
    assert len(pickle.dumps(source.index)) < 500, "processes share the mapped index"
    copied, selected = pickle.loads(pickle.dumps((source.index, source.index.select(range(1, 4)))))
    assert copied.record_run.tolist() == source.index.record_run.tolist()
    assert selected.record_run.tolist() == [0, 4, 8, 12]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(source.read, [4, 1]) == [records[4], records[1]]


@pytest.mark.parametrize("name", ["a.records", "a.images", "a.tok.tokens", "a.tok.runs.npz", "b.images", "runs.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damaged_files_are_named_when_a_source_is_opened(tmp_path, name, damage):
    write_source(tmp_path, [record(0), record(1)], [record(2)])
    (path,) = tmp_path.rglob(name)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "cut" else b"")
    with pytest.raises(ConfigError, match=rf"prepared data is damaged: .*{name} .*run: solo prepare CONFIG"):
        PreparedSource(tmp_path)


def test_damage_within_a_file_is_noticed(tmp_path):
    write_source(tmp_path, [record(5)])
    image = ImageConfig(patch_size=4, max_side=8)

    def damage(pattern: str) -> None:
        (path,) = tmp_path.rglob(pattern)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))

    damage("*.tokens")
    source = PreparedSource(tmp_path)
    with pytest.raises(OSError, match=r"a\.tok\.tokens is damaged"):
        source.chunk(0, 0, 5, image)
    with pytest.raises(ConfigError, match=r"a\.tok\.tokens is damaged"):
        source.check(contents=True)
    damage("runs.npy")
    with pytest.raises(ConfigError, match=r"runs\.npy is damaged"):
        PreparedSource(tmp_path)


def test_a_record_of_which_an_image_is_bad_is_left_out_whole(tmp_path):
    good, bad = record(1).images()[0], Image(b"no image")
    examples = [
        Record("bad", (Turn("text", (good, bad, "x")),)),
        Record("surrogate", (Turn("text", (good, "a\udcff")),)),
        Record("silent", (Turn("user", ("Hello?",)),)),
        record(1),
    ]
    source = write_source(tmp_path, examples)
    assert [source.read(number) for number in range(len(source))] == [record(1)]
    assert source.description.distinct_images == 1
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["bad", "surrogate", "silent"]
    assert lines[0]["reason"].startswith("image 2 cannot be read: it is a text file")
    assert "not valid Unicode" in lines[1]["reason"]
    assert "no assistant or text turn" in lines[2]["reason"]


def test_files_that_disappear_are_errors_of_their_records_alone(tmp_path):
    records = [record(number) for number in range(8)]
    source = write_source(tmp_path, *split(records, 2))
    source.read(0)
    for name in ("a.images", "b.images", "c.tok.tokens"):
        (path,) = tmp_path.rglob(name)
        if name == "a.images":  # which is open
            path.write_bytes(path.read_bytes()[:100])
        else:
            path.unlink()
    for number in (1, 2, 3, 4, 5):
        with pytest.raises((OSError, RuntimeError), match=r"a\.images is cut|b\.images is missing|c\.tok\.tokens"):
            source.whole(number)
    assert len(source.whole(6)) == 4
    assert source.read(5) == records[5]
