"""Files that the safetensors package reads, in memory that does not grow with the model."""

import json
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from solo.interop.tensor_reader import TensorFileError, TensorInfo, TensorReader
from solo.interop.tensor_writer import complete_folder, write_tensors


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
def test_another_reader_finds_the_same_values(tmp_path, tensors, limit, files):
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


def test_values_that_were_not_announced(tmp_path):
    announced = [TensorInfo("a", (2, 3), np.dtype(np.float32))]
    for values in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64)):
        with pytest.raises(TensorFileError, match=r"a should be float32 \(2, 3\)"):
            write_tensors(tmp_path, announced, lambda name, values=values: values)
        (tmp_path / "model.safetensors").unlink()


def test_a_disk_without_room_is_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(TensorFileError, match="the disk has"):
        write_tensors(tmp_path, [TensorInfo("a", (10**18,), np.dtype(np.float32))], lambda name: np.zeros(1))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_complete_or_not_there(tmp_path):
    with pytest.raises(RuntimeError, match="half way"), complete_folder(tmp_path / "deep" / "out") as partial:  # noqa: PT012
        (partial / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
        raise RuntimeError("half way")
    assert not list((tmp_path / "deep").iterdir())
    with complete_folder(tmp_path / "deep" / "out") as partial:
        (partial / "file").write_text("x")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match="exists; it is not overwritten"), complete_folder(tmp_path / "deep/out"):
        pass
    assert (tmp_path / "deep" / "out" / "file").read_text() == "x"


def test_a_partial_folder_of_another_process_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(FileExistsError, match="another process is writing it, or one was killed"):
        complete_folder(tmp_path / "out").__enter__()
    assert (tmp_path / "out.partial").is_dir()


def test_copying_takes_the_memory_of_a_tensor_not_of_the_model(tmp_path):
    """48 tensors of 8 MiB through a process that may grow by less than 80 MiB."""
    script = f"""
        import resource
        from pathlib import Path
        import numpy as np
        from solo.interop.tensor_reader import TensorInfo, TensorReader
        from solo.interop.tensor_writer import write_tensors
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
