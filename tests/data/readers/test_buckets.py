"""Inputs in object stores: every reader takes URLs as it takes paths."""

import gzip
import io
import json
import tarfile

import fsspec
import pytest

from solo.data.record import Image
from tests.data.buckets import _gs, _s3, bucket, gs, s3  # noqa: F401
from tests.data.readers.pictures import BLUE, RED, read_source


@pytest.fixture
def put(bucket):  # noqa: F811
    """Writes an object. Returns its URL."""
    files, root = fsspec.core.url_to_fs(bucket)

    def write(name: str, data: bytes) -> str:
        files.pipe_file(f"{root}/{name}", data)
        return f"{bucket}/{name}"

    return write


def _turns(image: str) -> dict:
    turns = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "red"}]
    return {"id": image, "image": image, "conversations": turns}


def _images(records: dict) -> list[bytes]:
    return [part.data for content in records.values() for part in content if isinstance(part, Image)]


def test_conversations_and_their_images(put):
    put("images/red.png", RED.data)
    path = put("train.jsonl.gz", gzip.compress(json.dumps(_turns("red.png")).encode()))
    records, unreadable, _ = read_source("llava", path=path, images=path.replace("train.jsonl.gz", "images"))
    assert _images(records) == [RED.data]
    assert not unreadable
    path = put("gone.jsonl", json.dumps(_turns("gone.png")).encode())
    records, unreadable, _ = read_source("llava", path=path, images=path.replace("gone.jsonl", "images"))
    assert not records
    assert "gone.png" in unreadable["gone.png"]


def test_tar_shards_of_a_glob(put):
    for number, image in enumerate((RED.data, BLUE.data)):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as shard:
            for name, content in ((f"{number}.png", image), (f"{number}.txt", b"a colour")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
        url = put(f"shards/{number}.tar", data.getvalue())
    records, unreadable, _ = read_source("webdataset", path=url.replace("1.tar", "*.tar"))
    assert _images(records) == [RED.data, BLUE.data]
    assert not unreadable


def test_parquet(put):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    data = io.BytesIO()
    table = {
        "image": [{"bytes": RED.data, "path": None}, {"bytes": BLUE.data, "path": None}],
        "caption": ["red", "blue"],
    }
    parquet.write_table(pyarrow.table(table), data)
    records, unreadable, _ = read_source("auto", path=put("table.parquet", data.getvalue()))
    assert _images(records) == [RED.data, BLUE.data]
    assert not unreadable
