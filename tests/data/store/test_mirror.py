import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import Config, ConfigError
from solo.data.record import encode_png
from solo.data.store.bucket import Bucket, BucketError, local_folder
from solo.data.store.mirror import Mirror, cache_note
from solo.data.store.prepare import open_prepared, prepare
from tests.data.buckets import _gs, _s3, bucket, gs, s3  # noqa: F401
from tests.data.store.test_prepare import LINES, config, state


@pytest.fixture
def sources(tmp_path) -> dict:
    """Lines, and four pictures in as many parts, of which two are the same."""
    folder = tmp_path / "pictures" / "kites"
    folder.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number % 3).integers(0, 256, (20, 30, 3), np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(PillowImage.fromarray(pixels)).data)
    return {"lines": LINES, "pictures": {"reader": "folder", "options": {"path": str(folder.parent)}}}


def remote(tmp_path: Path, url: str, sources: dict, machine: str = "a", **data) -> Config:
    """A config whose prepared data lies in a bucket, as a machine sees it."""
    data = {"cache": str(tmp_path / machine), "records_per_shard": 2, "tokenizer": {"vocab_size": 320}} | data
    made = config(tmp_path, sources, **data)
    return made.model_copy(update={"data": made.data.model_copy(update={"folder": url})})


def contents(url: str) -> dict[str, bytes]:
    """The files of a bucket. `inputs.json` holds the times of folders."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    found = {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}
    return {name: data for name, data in found.items() if not name.endswith("inputs.json")}


def data_files(config: Config) -> list[Path]:
    folder = local_folder(config)
    return [path for path in folder.rglob("*") if path.suffix in (".records", ".images", ".tokens")]


def read_all(prepared) -> list:
    return [
        (source.read(number), [getattr(run, "tokens", run) for run in source.whole(number)])
        for source in prepared.sources.values()
        for number in range(len(source))
    ]


def same(one: list, other: list) -> bool:
    return repr(one) == repr(other) and len(one) > 0


def test_prepared_in_a_bucket_as_in_a_folder(tmp_path, bucket, sources):  # noqa: F811
    here = config(tmp_path, sources, records_per_shard=2, tokenizer={"vocab_size": 320})
    expected = read_all(prepare(here))
    there = remote(tmp_path, f"{bucket}/prepared/", sources)
    assert same(read_all(prepare(there)), expected)
    local = {name: data for name, data in state(tmp_path / "data").items() if ".locks" not in name}
    assert contents(f"{bucket}/prepared") == local
    # Another machine copies what it reads, and finds nothing to prepare.
    other, lines = remote(tmp_path, f"{bucket}/prepared", sources, "b"), []
    assert same(read_all(open_prepared(other)), expected)
    prepare(other, lines.append)
    assert lines[0].endswith("already prepared")
    assert contents(f"{bucket}/prepared") == local


def test_files_are_copied_when_they_are_read_and_removed_above_the_limit(tmp_path, s3, sources):  # noqa: F811
    prepare(remote(tmp_path, s3, sources))
    made = remote(tmp_path, s3, sources, "b", cache_gigabytes=300e-6)
    prepared = open_prepared(made)
    source = prepared.sources["pictures"]
    assert data_files(made) == []
    source.read(0)
    assert {path.suffix for path in data_files(made)} == {".records", ".images"}
    most = 0
    for _ in range(2):
        for number in range(len(source)):
            assert source.read(number).turns[0].content[0].data.startswith(b"\x89PNG")
            most = max(most, sum(path.stat().st_size for path in data_files(made)))
    assert 100_000 < most <= 300_000
    everything = sum(each.size for part in source.description.parts for each in part.files.values())
    assert everything > 600_000
    assert "copied from s3://" in (cache_note(made, [source.description]) or "")
    assert cache_note(remote(tmp_path, s3, sources, "b"), [source.description]) is None


def test_a_file_that_is_only_here_is_never_removed(tmp_path, s3, sources):  # noqa: F811
    made = remote(tmp_path, s3, sources, cache_gigabytes=1e-9)
    prepare(made)
    assert data_files(made) == []
    mirror = Mirror.of(made)
    precious = local_folder(made) / "sources" / "pictures" / "parts" / "0123.images"
    precious.write_bytes(b"x" * 100)
    mirror.keep_within_limit()
    assert precious.exists()


def test_threads_may_read_the_same_file_first(tmp_path, s3, sources, monkeypatch):  # noqa: F811
    prepare(remote(tmp_path, s3, sources))
    made = remote(tmp_path, s3, sources, "b")
    copied = []
    download = Bucket.download
    monkeypatch.setattr(
        Bucket, "download", lambda self, name, *rest: (copied.append(name), download(self, name, *rest))[1]
    )
    sources = [open_prepared(made).sources["pictures"] for _ in range(4)]
    copied.clear()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: repr(sources[number % 4].read(0)), range(32)))
    assert len(set(found)) == 1
    assert len(copied) == len(set(copied)) == 2  # .records and .images of a part


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_objects_are_noticed(tmp_path, s3, sources, damage):  # noqa: F811
    prepare(remote(tmp_path, s3, sources))
    files, root = fsspec.core.url_to_fs(s3, use_listings_cache=False)
    name = sorted(files.glob(f"{root}/sources/pictures/parts/*.images"))[0]
    data = files.cat_file(name)
    if damage == "gone":
        files.rm_file(name)
    else:
        files.pipe_file(name, data[:-9] if damage == "cut" else data[:900] + b"?" + data[901:])
    made = remote(tmp_path, s3, sources, "b")
    if damage != "changed":
        with pytest.raises(ConfigError, match=r"prepared data is damaged: .*\.images (has|is missing)"):
            open_prepared(made)
    else:
        source = open_prepared(made).sources["pictures"]
        with pytest.raises(OSError, match=r"://.*\.images is damaged: its checksum"):
            read_all(open_prepared(made))
        with pytest.raises(ConfigError, match=r"\.images is damaged"):
            source.check(contents=True)
    if damage == "changed":
        return
    prepare(made)  # makes the part again
    assert files.cat_file(name) == data


@pytest.mark.parametrize("uploads", [3, 25])
def test_killed_uploads_are_completed(tmp_path, s3, sources, monkeypatch, uploads):  # noqa: F811
    prepare(config(tmp_path, sources, records_per_shard=2, tokenizer={"vocab_size": 320}))
    made = remote(tmp_path, s3, sources)
    upload, done = Bucket.upload, []

    def killed(self, name, path):
        if len(done) == uploads:
            raise KeyboardInterrupt
        done.append(name)
        upload(self, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(made)
    assert len(done) == uploads
    other = remote(tmp_path, s3, sources, "b")
    with pytest.raises(ConfigError, match="run: solo prepare"):
        open_prepared(other)
    prepare(made)
    local = {name: data for name, data in state(tmp_path / "data").items() if ".locks" not in name}
    assert contents(s3) == local
    assert same(read_all(open_prepared(other)), read_all(open_prepared(made)))


def test_another_machine_continues(tmp_path, s3, sources, monkeypatch):  # noqa: F811
    made = remote(tmp_path, s3, sources)
    with monkeypatch.context() as patch:
        patch.setattr("solo.data.store.preparation.publish_source", None)
        with pytest.raises(TypeError):
            prepare(made)
    uploaded = []
    upload = Bucket.upload
    monkeypatch.setattr(Bucket, "upload", lambda self, name, path: (uploaded.append(name), upload(self, name, path)))
    prepare(remote(tmp_path, s3, sources, "b", cache_gigabytes=1e-9))
    assert "sources/pictures/source.json" in uploaded
    assert not [name for name in uploaded if name.endswith((".records", ".tokens"))]


def test_another_tokenizer_copies_no_image(tmp_path, s3, sources):  # noqa: F811
    prepare(remote(tmp_path, s3, sources))
    other = remote(tmp_path, s3, sources, "b", tokenizer={"vocab_size": 310})
    prepare(other)
    assert not [path for path in data_files(other) if path.suffix == ".images"]


def test_what_cannot_be_reached_is_said_in_words(tmp_path, s3, gs, monkeypatch):  # noqa: F811
    sources = {"lines": LINES}
    for url in (f"{s3}-none/prepared", f"{gs}-none/prepared"):
        with pytest.raises(ConfigError, match=r"-none/prepared.* does not exist"):
            prepare(remote(tmp_path, url, sources))
    with pytest.raises(ConfigError, match="nosuch"):
        prepare(remote(tmp_path, "nosuch://bucket/prepared", sources))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ConfigError, match="Unable to locate credentials; log in with `aws configure`"):
        prepare(remote(tmp_path, s3, sources))
    monkeypatch.setattr("solo.storage._PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(Bucket, "_probe", lambda self: time.sleep(2))
    with pytest.raises(ConfigError, match="does not answer within"):
        prepare(remote(tmp_path, gs, sources))


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(BucketError, match=r"pip install 'solo-vlm\[s3\]'"):
        prepare(remote(tmp_path, "s3://bucket/prepared", {"lines": LINES}))


def test_files_of_the_user_are_left_alone(tmp_path, s3, sources):  # noqa: F811
    files, root = fsspec.core.url_to_fs(s3, use_listings_cache=False)
    files.pipe_file(f"{root}/tokenizer/tokenizer.model", b"mine")
    with pytest.raises(ConfigError, match=r"the tokenizer: s3://.*/tokenizer is in the way.*tokenizer\.model"):
        prepare(remote(tmp_path, s3, sources))
    assert files.cat_file(f"{root}/tokenizer/tokenizer.model") == b"mine"
    files.pipe_file(f"{root}/again/sources/pictures/mine.png", b"mine")
    with pytest.raises(ConfigError, match=r"'pictures': s3://.*/sources/pictures is in the way.*mine\.png"):
        prepare(remote(tmp_path, f"{s3}/again", sources))
    inside = {"reader": "llava", "options": {"path": f"{s3}/sources/all.jsonl"}}
    with pytest.raises(ConfigError, match="holds prepared data"):
        prepare(remote(tmp_path, s3, {"chat": inside}))
