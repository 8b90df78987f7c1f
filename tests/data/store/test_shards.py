import multiprocessing
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image as PillowImage

from solo.data.record import Image, Record, Turn, encode_png
from solo.data.rows.document import TextRun
from solo.data.store import shards as store
from solo.data.store.shards import Description, PreparedSource, SourceWriter


def record(number: int) -> Record:
    image = encode_png(PillowImage.new("RGB", (number % 7 + 1, 4), (number % 256, 0, 0)))
    return Record(f"é{number}", (Turn("user", (image, f"question {number}")), Turn("assistant", ("x" * number,))))


def write(folder, count: int, records_per_shard: int) -> PreparedSource:
    folder.mkdir()
    writer = SourceWriter(folder, records_per_shard)
    for number in range(count):
        image = record(number).images()[0]
        writer.add(record(number), [TextRun((1, 2), False), image, TextRun((3,) * (number + 1), True)])
    assert writer.records == count
    writer.finish("abc", quarantined=2)
    return PreparedSource(folder)


@pytest.mark.parametrize(("count", "records_per_shard", "shards"), [(1, 5, 1), (5, 5, 1), (6, 5, 2), (23, 5, 5)])
def test_round_trip(tmp_path, count, records_per_shard, shards):
    source = write(tmp_path / "source", count, records_per_shard)
    assert len(source) == len(source.index) == count
    order = random.Random(0).sample(range(count), count)
    assert [source.read(number) for number in order] == [record(number) for number in order]
    assert len(list((tmp_path / "source").glob("shard-*.array_record"))) == shards
    for number in (-1, count):
        with pytest.raises(IndexError, match=f"record {number} of .*, which has {count}"):
            source.read(number)


def test_description(tmp_path):
    source = write(tmp_path / "source", 3, 2)
    assert source.description == Description("abc", 3, 2, 2, images=3, text_tokens=3 * 2 + 6, supervised_tokens=6)
    assert Description.read(tmp_path / "source") == source.description
    assert source.index.run_size[1].tolist() == [1, 4]


def test_a_folder_without_a_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no prepared source"):
        PreparedSource(tmp_path)
    for text in ("{", "[]", '{"fingerprint": "of an older format"}'):
        (tmp_path / "source.json").write_text(text)
        assert Description.read(tmp_path) is None


def test_an_unreadable_image_leaves_nothing_behind(tmp_path):
    writer = SourceWriter(tmp_path, 4)
    bad = Record("bad", (Turn("text", (Image(b"no image"),)),))
    with pytest.raises(OSError, match=r".+"):
        writer.add(bad, [Image(b"no image"), TextRun((1,), True)])
    with pytest.raises(UnicodeEncodeError):
        writer.add(Record("a\udcff", ()), [TextRun((1,), True)])
    writer.add(record(0), [TextRun((1,), True)])
    writer.finish("", 0)
    source = PreparedSource(tmp_path)
    assert len(source) == len(source.index) == 1
    assert source.read(0) == record(0)


def test_threads_share_a_source(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_OPEN_SHARDS", 2)  # shards are closed while other threads read
    source = write(tmp_path / "source", 60, 7)
    order = random.Random(0).choices(range(60), k=1500)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, order)) == [record(number) for number in order]


def test_a_spawned_process_reads_a_source(tmp_path):
    source = write(tmp_path / "source", 5, 2)
    source.read(0)
    assert len(pickle.dumps(source)) < 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(source.read, [4, 1]) == [record(4), record(1)]
