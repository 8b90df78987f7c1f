"""Damaged files are refused with a message; files that are written can be read by the safetensors package."""

import json
import os
import re
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from solo.interop.tensor_files import TensorFileError, TensorInfo, TensorReader, complete_folder, write_tensors


def raw(path, header, values=b"", length=None):
    """A file with this header (a mapping or bytes), whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + values)
    return path


def entry(begin, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_every_dtype_is_read(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {
        "matrix": rng.normal(size=(5, 3)).astype(dtype),
        "vector": np.arange(7).astype(dtype),
        "scalar": np.array(3).astype(dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with TensorReader(tmp_path) as reader:
        assert set(reader) == set(tensors)
        for name, values in tensors.items():
            found = reader.read(name)
            assert (reader[name].shape, reader[name].dtype) == (values.shape, values.dtype)
            assert found.dtype == values.dtype
            assert found.tobytes() == values.tobytes()
        assert reader.read("matrix", 1, 3).tobytes() == tensors["matrix"][1:3].tobytes()
        assert reader.read("vector", 5).tobytes() == tensors["vector"][5:].tobytes()
        with pytest.raises(KeyError):
            reader.read("absent")


@pytest.mark.parametrize(
    ("header", "values", "length", "message"),
    [
        ({}, b"", 10**6, "invalid header length"),
        (b"{'a'", b"", None, "invalid JSON"),
        (b"\xff\xfe", b"", None, "invalid UTF-8"),
        ({"a": entry(0, 8)}, bytes(8), None, "invalid shape, data type, or offset"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6), None, "invalid offset for tensor `b`"),
        ({"a": entry(0, 4)}, bytes(5), None, "file not fully covered"),
        ({"a": entry(0, 1, "F8_E4M3")}, bytes(1), None, "a has dtype F8_E4M3; solo reads"),
    ],
)
def test_the_message_names_the_damaged_file_and_its_fault(tmp_path, header, values, length, message):
    file = raw(tmp_path / "model.safetensors", header, values, length)
    with pytest.raises(TensorFileError, match=message) as error:
        TensorReader(tmp_path)
    assert str(file) in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(TensorFileError):
            TensorReader(tmp_path)


def test_a_file_that_is_truncated_after_it_was_opened(tmp_path):
    file = raw(tmp_path / "model.safetensors", {"a": entry(0, 400, shape=(100,))}, bytes(400))
    with TensorReader(tmp_path) as reader:
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(TensorFileError, match="changed while it was read"):
            reader.read("a")


@pytest.fixture
def sharded(tmp_path):
    for number in (1, 2):
        save_file({f"t{number}": np.full(2, number, np.float32)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    weight_map = {f"t{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    return tmp_path, weight_map


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_are_read_through_their_index(sharded):
    with TensorReader(index(*sharded)) as reader:
        assert {name: reader.read(name)[0] for name in reader} == {"t1": 1, "t2": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t3": "model-00001-of-00002.safetensors"}, "disagree on t3"),
        ({"t2": "model-00001-of-00002.safetensors"}, "disagree on t2"),
        ({"t3": "model-00003-of-00002.safetensors"}, "lacks model-00003-of-00002.safetensors"),
        ({"t2": "../t2.safetensors"}, "places t2 in '../t2.safetensors'"),
        ({"t2": "t2.bin"}, "places t2 in 't2.bin'"),
        ({"t2": 3}, "places t2 in 3"),
    ],
)
def test_an_index_that_contradicts_the_files(sharded, change, message):
    folder, weight_map = sharded
    with pytest.raises(TensorFileError, match=re.escape(message)):
        TensorReader(index(folder, {**weight_map, **change}))


def test_a_shard_with_a_tensor_that_the_index_lacks(sharded):
    folder, weight_map = sharded
    save_file({"t2": np.zeros(1), "stray": np.zeros(1)}, folder / weight_map["t2"])
    with pytest.raises(TensorFileError, match="disagree on stray"):
        TensorReader(index(folder, weight_map))


def test_an_index_that_is_not_one(sharded):
    (sharded[0] / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(TensorFileError, match="is not an index of tensors"):
        TensorReader(sharded[0])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(TensorFileError, match=rf"pickles \({name}\), which run code.*convert them to safetensors"):
            TensorReader(path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(TensorFileError, match="there is no safetensors file"):
        TensorReader(tmp_path)
    with pytest.raises(TensorFileError, match="does not exist"):
        TensorReader(tmp_path / "absent")
    save_file({"a": np.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(TensorFileError, match=r"found model-00001-of-00002.safetensors, but no model.safetensors.ind"):
        TensorReader(tmp_path)


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {
        "odd": rng.normal(size=(3,)).astype(ml_dtypes.bfloat16),
        "wide": rng.normal(size=(4, 5)).astype(np.float32),
        "turned": rng.normal(size=(6, 4)).astype(ml_dtypes.bfloat16).T,
        "scalar": np.array(2.0, np.float32),
    }


def infos(tensors):
    return [TensorInfo(name, values.shape, values.dtype) for name, values in tensors.items()]


@pytest.mark.parametrize(("limit", "files"), [(10**9, 1), (100, 2), (1, 4)])
def test_the_safetensors_package_reads_what_is_written(tmp_path, tensors, limit, files):
    write_tensors(tmp_path, infos(tensors), tensors.__getitem__, max_shard_bytes=limit)
    found = {}
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert set(found) == set(tensors)
    for name, values in tensors.items():
        assert found[name].dtype == values.dtype
        assert (found[name] == values).all()
    with TensorReader(tmp_path) as reader:
        assert len(reader) == 4
        assert all((reader.read(name) == tensors[name]).all() for name in tensors)
    if files > 1:
        written = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert written["metadata"]["total_size"] == sum(values.nbytes for values in tensors.values())
        assert set(written["weight_map"]) == set(tensors)
        assert f"model-00001-of-0000{files}.safetensors" in written["weight_map"].values()


def test_every_tensor_is_aligned_to_its_dtype(tmp_path, tensors):
    write_tensors(tmp_path, infos(tensors), tensors.__getitem__)
    whole = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    assert length % 8 == 0
    assert header["odd"]["data_offsets"][0] > header["wide"]["data_offsets"][0]
    assert all(header[name]["data_offsets"][0] % values.dtype.itemsize == 0 for name, values in tensors.items())


def test_values_of_another_shape_or_dtype_than_announced(tmp_path):
    announced = [TensorInfo("a", (2, 3), np.dtype(np.float32))]
    for values in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64)):
        with pytest.raises(TensorFileError, match=r"a should be float32 \(2, 3\)"):
            write_tensors(tmp_path, announced, lambda name, values=values: values)
        (tmp_path / "model.safetensors").unlink()


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TensorFileError, match="are free on its disk"):
        write_tensors(tmp_path, [TensorInfo("a", (10**18,), np.dtype(np.float32))], lambda name: np.zeros(1))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_complete_or_absent(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), complete_folder(tmp_path / "deep" / "out") as partial:  # noqa: PT012
        (partial / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
        raise RuntimeError("half way")
    assert not list((tmp_path / "deep").iterdir())
    with complete_folder(tmp_path / "deep" / "out") as partial:
        (partial / "file").write_text("x")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match="already exists; remove it"), complete_folder(tmp_path / "deep/out"):
        pass
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"


def test_a_partial_folder_of_another_process_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(FileExistsError, match="another process is writing it, or one was killed"):
        complete_folder(tmp_path / "out").__enter__()
    assert (tmp_path / "out.partial").is_dir()


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Copies 48 tensors of 8 MiB in a process that may grow by less than 80 MiB."""
    script = f"""
        import resource
        from pathlib import Path
        import numpy as np
        from solo.interop.tensor_files import TensorInfo, TensorReader, write_tensors
        source, out = Path({str(tmp_path)!r}) / "source", Path({str(tmp_path)!r}) / "out"
        source.mkdir(), out.mkdir()
        infos = [TensorInfo(str(n), (2048, 1024), np.dtype(np.float32)) for n in range(48)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        write_tensors(source, infos, lambda name: np.full((2048, 1024), int(name), np.float32), max_shard_bytes=10**8)
        with TensorReader(source) as reader:
            write_tensors(out, list(reader.values()), reader.read)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 80 * 2**20
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 48 * 8 * 2**20


def test_an_index_of_an_earlier_save_is_ignored(sharded):
    """As transformers does, which leaves the index behind when a folder is saved again without shards."""
    folder, weight_map = sharded
    index(folder, weight_map)
    save_file({"t1": np.full(2, 7, np.float32)}, folder / "model.safetensors")
    with pytest.raises(TensorFileError, match=r"has weights twice, in model\.safetensors and in the shards"):
        TensorReader(folder)
    (folder / weight_map["t2"]).unlink()
    with TensorReader(folder) as reader:
        assert {name: reader.read(name)[0] for name in reader} == {"t1": 7}


def test_an_adapter_is_not_left_out_silently(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(TensorFileError, match=r"has an adapter.*merge it"):
        TensorReader(tmp_path)


def test_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(TensorFileError, match=r"model\.safetensors is a pointer to a file in Git LFS; `git lfs pull`"):
        TensorReader(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user for a moment")
def test_a_file_of_another_user(tmp_path, monkeypatch):
    file = raw(tmp_path / "model.safetensors", {"a": entry(0, 4)}, bytes(4))
    file.chmod(0o600)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    try:
        os.seteuid(65534)
        with pytest.raises(TensorFileError, match=r"model\.safetensors cannot be read: Permission denied"):
            TensorReader("model.safetensors")
    finally:
        os.seteuid(0)


def test_folders_that_cannot_be_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    for name in ("link", ".", "/"):
        with pytest.raises(FileExistsError, match="already exists; remove it"):
            complete_folder(name).__enter__()
    for name, reason in (("file/out", "file: "), ("x" * 300, "File name too long")):
        with pytest.raises(TensorFileError, match=f"cannot be created: .*{reason}"):
            complete_folder(name).__enter__()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_disk_that_is_full_while_writing(tmp_path):
    """The limit on the size of files of a process gives the same kind of error as a full disk."""
    script = f"""
        import resource
        import numpy as np
        from solo.interop.tensor_files import TensorFileError, TensorInfo, complete_folder, write_tensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            with complete_folder({str(tmp_path / "out")!r}) as folder:
                write_tensors(folder, [TensorInfo("a", (9999,), np.dtype(np.float32))], lambda name: np.ones(9999, "f"))
        except TensorFileError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/out was not written: File too large\n"
    assert not list(tmp_path.iterdir())
