"""Every way in which a file can be damaged is named, and what is good is read as the safetensors package reads it."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from solo.interop.tensor_reader import TensorFileError, TensorReader


def raw(path, header, values=b"", length=None):
    """A file with this header (a mapping or bytes), whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + values)
    return path


def entry(begin, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_values_are_those_of_the_safetensors_package(tmp_path, dtype):
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
        with pytest.raises(IndexError, match="matrix has 5 rows; asked for 2:6"):
            reader.read("matrix", 2, 6)
        with pytest.raises(KeyError):
            reader.read("absent")


@pytest.mark.parametrize(
    ("header", "values", "length", "message"),
    [
        ({}, b"", 10**6, "is cut or no safetensors file"),
        (b"{'a'", b"", None, "damaged header"),
        (b"\xff\xfe", b"", None, "damaged header"),
        (b"[1]", b"", None, "damaged header"),
        (b'{"a":1,"a":2}', b"", None, "'a' is there twice"),
        ({"a": {"dtype": "F32"}}, b"", None, "entry for a is damaged"),
        ({"a": entry(0, 4, shape=(-1,))}, bytes(4), None, "a has impossible numbers"),
        ({"a": entry(0, 4, "F4")}, bytes(4), None, "a has dtype 'F4'"),
        ({"a": entry(0, 8)}, bytes(8), None, r"a is F32 \(1,\), 4 bytes, but has 8"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6), None, "b overlaps"),
        ({"a": entry(0, 4), "b": entry(6, 10)}, bytes(10), None, "b follows 2 stray bytes"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4), None, "overlaps"),
        ({"a": entry(0, 4)}, bytes(3), None, "tells of 4 bytes of values, it has 3"),
        ({"a": entry(0, 4)}, bytes(5), None, "tells of 4 bytes of values, it has 5"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(tmp_path, header, values, length, message):
    file = raw(tmp_path / "model.safetensors", header, values, length)
    with pytest.raises(TensorFileError, match=message) as error:
        TensorReader(tmp_path)
    assert str(file) in str(error.value)


def test_every_truncation_is_noticed(tmp_path):
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(TensorFileError):
            TensorReader(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    file = raw(tmp_path / "model.safetensors", {"a": entry(0, 400, shape=(100,))}, bytes(400))
    with TensorReader(tmp_path) as reader:
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(TensorFileError, match="became shorter"):
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
        ({"t3": "model-00001-of-00002.safetensors"}, "the file lacks t3"),
        ({"t2": "model-00001-of-00002.safetensors"}, "the file lacks t2"),
        ({"t3": "model-00003-of-00002.safetensors"}, "lacks model-00003-of-00002.safetensors"),
        ({"t2": "../t2.safetensors"}, "t2 is said to be in '../t2.safetensors'"),
        ({"t2": "t2.bin"}, "t2 is said to be in 't2.bin'"),
        ({"t2": 3}, "t2 is said to be in 3"),
    ],
)
def test_an_index_that_lies(sharded, change, message):
    folder, weight_map = sharded
    with pytest.raises(TensorFileError, match=re.escape(message)):
        TensorReader(index(folder, {**weight_map, **change}))


def test_a_shard_with_more_than_its_index_knows(sharded):
    folder, weight_map = sharded
    save_file({"t2": np.zeros(1), "stray": np.zeros(1)}, folder / weight_map["t2"])
    with pytest.raises(TensorFileError, match="the index does not know stray"):
        TensorReader(index(folder, weight_map))


def test_an_index_that_is_none(sharded):
    (sharded[0] / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(TensorFileError, match="is no index of tensors"):
        TensorReader(sharded[0])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(TensorFileError, match=rf"pickles \({name}\), which run code.*convert them to safetensors"):
            TensorReader(path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(TensorFileError, match="no safetensors file"):
        TensorReader(tmp_path)
    with pytest.raises(TensorFileError, match="does not exist"):
        TensorReader(tmp_path / "absent")
    save_file({"a": np.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(TensorFileError, match=r"found model-00001-of-00002.safetensors, but no model.safetensors.ind"):
        TensorReader(tmp_path)
