"""Run folders in buckets: checkpoints by Orbax and TensorStore, the other files, and the lock."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import solo
from solo.cli import main
from solo.config import CheckpointConfig, ConfigError, dump_config
from solo.files import complete_checkpoints, place, read_json_lines
from solo.interop.export import export
from solo.storage import Bucket, BucketError
from solo.training import bucket_run, run_lock
from solo.training.bucket_run import BucketStore, fetch, gather_quarantine
from solo.training.checkpoint import CheckpointError, Checkpoints, Progress
from solo.training.ledger import goodput
from solo.training.newest import fault, newest_whole
from solo.training.run_folder import RunFolder
from solo.training.run_lock import Holder, RunLock, living_holder
from solo.training.step import Health, TrainState
from tests.data.buckets import _gs, _s3, bucket, gs, s3  # noqa: F401
from tests.tiny import tiny_config
from tests.training.test_resume import CONFIG, STEPS, Runs


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> Path:
    """The folder of copies of a machine."""
    monkeypatch.setenv("SOLO_CACHE", str(tmp_path / "machine"))
    return tmp_path / "machine"


def state(step: int) -> TrainState:
    values = jax.device_put(
        jnp.arange(64.0).reshape(8, 8) * step,
        jax.sharding.NamedSharding(jax.make_mesh((8,), ("x",)), jax.sharding.PartitionSpec("x")),
    )
    zero = jnp.zeros((), jnp.int32)
    return TrainState({"w": values}, {}, (), Health(jnp.zeros(()), zero, zero), jnp.int32(step))


def abstract(found: TrainState):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), found)


def saved(folder: Path, *steps: int, **config) -> Checkpoints:
    checkpoints = Checkpoints(folder, CheckpointConfig(**config))
    for step in steps:
        checkpoints.save(state(step), Progress(step, 0, step, {}))
    checkpoints.wait()
    return checkpoints


def test_checkpoints_are_written_restored_and_deleted(bucket):  # noqa: F811
    folder = place(bucket) / "runs" / "a" / "checkpoints"
    saved(folder, 1, 2, 3, keep_latest=2).close()
    assert [path.name for path in complete_checkpoints(folder)] == ["2", "3"]
    assert not Bucket(str(folder)).sizes("1")
    assert not [name for name in Bucket(str(folder)).folders() if not name.isdigit()]
    again = Checkpoints(folder, CheckpointConfig())
    progress, found = again.resume(lambda progress: abstract(state(progress.step)))
    again.close()
    assert progress.step == 3
    np.testing.assert_array_equal(found.parameters["w"], np.arange(64.0).reshape(8, 8) * 3)
    assert len(found.trainable["w"].sharding.device_set) == 8


def test_a_damaged_checkpoint_is_passed_over(bucket):  # noqa: F811
    folder = place(bucket) / "checkpoints"
    saved(folder, 1, 2).close()
    (largest,) = (name for name in Bucket(str(folder / "2")).sizes() if "parameters/d/" in name)
    Bucket(str(folder / "2")).write(largest, b"cut")
    assert largest in fault(folder / "2")
    assert newest_whole(folder)[0] == folder / "1"
    checkpoints = Checkpoints(folder, CheckpointConfig())
    progress, _ = checkpoints.resume(lambda progress: abstract(state(progress.step)))
    assert progress.step == 1
    assert checkpoints.passed_over[0].endswith("; it was renamed to 2.damaged")
    checkpoints.save(state(2), Progress(2, 0, 2, {}))
    checkpoints.close()
    assert fault(folder / "2") is None


def test_a_bucket_that_fails_is_no_damage(s3, monkeypatch):  # noqa: F811
    folder = place(s3) / "checkpoints"
    saved(folder, 1).close()

    def fails(self, *rest):
        raise BucketError("no network")

    monkeypatch.setattr(Bucket, "read", fails)
    with pytest.raises(BucketError, match="no network"):
        newest_whole(folder)
    monkeypatch.undo()
    assert Bucket(str(folder)).folders() == ["1"]


def config_in(url: str, **sections):
    return tiny_config(folder=url, **sections)


def test_incomplete_checkpoints_are_removed_and_said(bucket):  # noqa: F811
    config, notes = config_in(f"{bucket}/runs"), []
    run = RunFolder.open(config, notes.append)
    saved(run.checkpoints, 1).close()
    Bucket(str(run.checkpoints)).write("2/parameters/d/1234", b"half")
    Bucket(str(run.checkpoints)).write("2.damaged/parameters/d/1234", b"of the user")
    BucketStore(run, notes.append, background=False).push()
    RunFolder.open(config, notes.append)
    assert notes == [f"checkpoint {bucket}/runs/tiny/checkpoints/2 is incomplete and was removed"]
    assert sorted(Bucket(str(run.checkpoints)).folders()) == ["1", "2.damaged"]
    assert run.newest_step() == 1


def test_files_are_copied_there_and_back(bucket, monkeypatch, tmp_path):  # noqa: F811
    config = config_in(f"{bucket}/runs")
    run = RunFolder.open(config)
    assert run.work != run.path
    store = BucketStore(run, print, background=False)
    run.metrics_file.write_text('{"step": 1}\n')
    run.tensorboard.mkdir()
    (run.tensorboard / "events").write_text("x")
    (run.work / "profile" / "3").mkdir(parents=True)
    (run.work / "profile" / "3" / "trace").write_text("x")
    store.push()
    there = Bucket(str(run.path))
    assert set(there.sizes()) == {"config.yaml", "metrics.jsonl", "profile/3/trace"}
    run.metrics_file.write_text('{"step": 1}\n{"step": 2}\n')
    store.push()
    monkeypatch.setenv("SOLO_CACHE", str(tmp_path / "elsewhere"))
    other = RunFolder.existing(f"{bucket}/runs/tiny")
    assert other.work.is_relative_to(tmp_path / "elsewhere")
    assert other.metrics_file.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert other.config_file.read_text() == dump_config(config)


def test_the_bucket_is_right_except_for_lines_that_were_added(s3):  # noqa: F811
    run = RunFolder.open(config_in(f"{s3}/runs"))
    for path in (run.metrics_file, run.goodput_file):
        path.write_text("1\n")
    BucketStore(run, print, background=False).push()
    run.metrics_file.write_text("1\n2\n")
    run.goodput_file.write_text("other\n2\n")
    run.report_file.write_text("old")
    run.config_file.write_text("old")
    fetch(run)
    assert (run.metrics_file.read_text(), run.goodput_file.read_text()) == ("1\n2\n", "1\n")
    assert not run.report_file.exists()
    assert run.config_file.read_text().startswith("name: tiny")
    there = Bucket(str(run.path))
    for name in there.sizes():  # somebody deletes the run
        there.remove(name)
    fetch(run)
    assert not list(run.work.iterdir())


def test_what_other_processes_quarantined_is_gathered(s3):  # noqa: F811
    config = config_in(f"{s3}/runs")
    run = RunFolder.open(config)
    run.quarantine_file.write_text('{"step": 1}\n')
    other = RunFolder(run.path, process=3)
    other.quarantine_file.write_text('{"step": 2}\n')
    for process in (2, 3):
        (run.work / "profile" / f"step-1-process-{process}" / "plugins").mkdir(parents=True)
        (run.work / "profile" / f"step-1-process-{process}" / "plugins" / "trace").write_text("x")
    BucketStore(other, print, background=False).push()
    assert set(Bucket(str(run.path)).sizes()) == {"quarantine-3.jsonl", "profile/step-1-process-3/plugins/trace"}
    BucketStore(run, print, background=False).push()
    RunFolder.open(config)
    assert read_json_lines(run.quarantine_file)[0] == [{"step": 1}, {"step": 2}]
    there = Bucket(str(run.path))
    assert there.read("quarantine.jsonl") == b'{"step": 1}\n{"step": 2}\n'
    assert there.size("quarantine-3.jsonl") is None
    gather_quarantine(run)
    assert read_json_lines(run.quarantine_file)[0] == [{"step": 1}, {"step": 2}]


def test_uploads_are_tried_again_and_then_end_the_run(s3, monkeypatch):  # noqa: F811
    run, notes, tries = RunFolder.open(config_in(f"{s3}/runs")), [], []
    upload = Bucket.upload

    def fails(self, name, path):
        tries.append(name)
        if len(tries) < 3:
            raise BucketError("no network")
        upload(self, name, path)

    monkeypatch.setattr(Bucket, "upload", fails)
    monkeypatch.setattr(bucket_run.time, "sleep", lambda seconds: None)
    store = BucketStore(run, notes.append, background=False)
    store.store()
    assert tries == ["config.yaml"] * 3
    monkeypatch.setattr(bucket_run, "PATIENCE_SECONDS", 0.0)
    tries.clear()
    run.metrics_file.write_text("1\n")
    with pytest.raises(CheckpointError, match="and no checkpoint is saved without them: no network"):
        store.store()


def test_copies_in_the_background_say_what_fails_once(s3, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bucket_run, "STORE_SECONDS", 0.01)
    run, notes = RunFolder.open(config_in(f"{s3}/runs")), []
    fails = [True]
    push = BucketStore.push

    def push_or_fail(self):
        if fails[0]:
            raise BucketError("no network")
        push(self)

    monkeypatch.setattr(BucketStore, "push", push_or_fail)
    store = BucketStore(run, notes.append)
    wait_for(lambda: notes)
    fails[0] = False
    wait_for(lambda: len(notes) == 2)
    store.stop()
    assert notes == [
        "the files of the run are not stored for now: no network",
        f"the files of the run are stored in {run.path} again",
    ]
    assert Bucket(str(run.path)).read("config.yaml") == run.config_file.read_bytes()


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def test_only_one_process_holds_the_lock(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.02)
    there = Bucket(f"{bucket}/runs/a")
    lock = RunLock(there)
    assert living_holder(there).pid == os.getpid()
    with pytest.raises(ConfigError, match=rf"another process trains {there.url}: process {os.getpid()} on .* since"):
        RunLock(there)
    lock.release()
    assert there.sizes() == {}
    RunLock(there).release()


def holder(**facts) -> bytes:
    here = Holder.here()
    return json.dumps({**here.__dict__, "key": "other", **facts}).encode()


def test_the_lock_of_a_process_that_has_ended_is_taken_over(s3, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run_lock, "_SETTLE_SECONDS", 0.0)
    there, notes = Bucket(f"{s3}/runs/a"), []
    with subprocess.Popen(["true"]) as ended:
        pass
    there.write("run.lock", holder(pid=ended.pid, started="12", host="gone"))
    lock = RunLock(there, notes.append)
    assert f"process {ended.pid} on gone" in notes[0]
    assert "shows no sign of life" in notes[0]
    # A process on another machine that is no longer seen.
    lock.release()
    monkeypatch.setattr(run_lock, "DEAD_SECONDS", 1.0)
    there.write("run.lock", holder(machine="another"))
    lock = RunLock(there, notes.append)
    assert "waiting up to" in notes[1]
    assert "no sign of life" in notes[2]
    assert lock.lost_to() is None
    lock.release()


def test_a_process_whose_lock_was_taken_saves_no_more(s3, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run_lock, "RENEW_SECONDS", 0.02)
    run = RunFolder.open(config_in(f"{s3}/runs"))
    lock = RunLock(Bucket(str(run.path)))
    Bucket(str(run.path)).write("run.lock", holder(host="thief", machine="another"))
    wait_for(lock.lost_to)
    store = BucketStore(run, print, lock, background=False)
    with pytest.raises(CheckpointError, match=r"process \d+ on thief since .* has taken over s3://"):
        store.store()
    lock.release()
    assert json.loads(Bucket(str(run.path)).read("run.lock"))["host"] == "thief"


@pytest.mark.parametrize("folder", ["gs://", "gs://x/runs", "s3://Bucket/runs", "hf://a/b", "gs://my bucket/runs"])
def test_places_that_are_none_are_refused(folder):
    with pytest.raises(ConfigError, match="neither a folder nor a place in a bucket"):
        tiny_config(folder=folder)


@pytest.mark.parametrize("name", ["my.bucket", "my_bucket", "b1-2"])
def test_names_of_buckets(name):
    assert str(tiny_config(folder=f"gs://{name}/a/b/").run_folder) == f"gs://{name}/a/b/tiny"


def command(tmp_path: Path, url: str) -> list[str]:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return ["train", str(tmp_path / "config.yaml"), f"folder={url}", f"data.folder={tmp_path / 'data'}"]


def test_what_cannot_be_reached_is_said_before_anything_is_prepared(tmp_path, s3, gs, monkeypatch, capsys):  # noqa: F811
    for url in (s3, gs):
        assert main(command(tmp_path, f"{url}-none/runs")) == 2
        assert f"solo: {url}-none/runs/run or its bucket does not exist" in capsys.readouterr().err
        assert main(["generate", f"{url}/runs/run", "--prompt", "x"]) == 2
        assert "is not a folder; expected a run" in capsys.readouterr().err
        assert main(["goodput", f"{url}/runs/run"]) == 2
        assert f"solo: {url}/runs/run is not a run of solo" in capsys.readouterr().err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert main(command(tmp_path, f"{s3}/runs")) == 2
    assert "Unable to locate credentials; log in with `aws configure`" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    assert main(command(tmp_path, f"{s3}/runs")) == 2
    assert "a library is missing: pip install 'solo-vlm[s3]'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PermissionError("Access Denied when calling DeleteObject"), 2, "DeleteObject; log in with `aws configure`"),
        (ConnectionError("Could not connect to the endpoint"), 200, "Could not connect to the endpoint\n"),
    ],
)
def test_a_bucket_without_rights_is_refused_and_one_that_fails_may_be_tried_again(
    tmp_path,
    s3,  # noqa: F811
    monkeypatch,
    capsys,
    error,
    status,
    said,
):
    def fails(self, path):
        raise error

    files = fsspec.get_filesystem_class("s3")
    files.clear_instance_cache()  # an instance holds its methods
    monkeypatch.setattr(files, "rm_file", fails)
    rows = [f"stages.{number}.batch_rows=8" for number in (0, 1)]  # a row for each of the tests' devices
    assert main([*command(tmp_path, f"{s3}/runs"), *rows]) == status
    assert f"cannot be reached: {error}"[:40] in (text := capsys.readouterr().err)
    assert said in text


def test_what_could_not_be_stored_at_the_end_is_said(s3, monkeypatch):  # noqa: F811
    run, notes = RunFolder.open(config_in(f"{s3}/runs")), []

    def fails(self, name, path):
        raise BucketError("no network")

    monkeypatch.setattr(Bucket, "upload", fails)
    with pytest.raises(KeyError), bucket_run.storing(run, notes.append):
        raise KeyError
    assert notes == [f"the newest lines of the run are only in {run.work}: no network"]


def test_a_permission_that_orbax_lacks_is_named(gs, monkeypatch):  # noqa: F811
    def forbidden(name):
        raise RuntimeError("403 GET: run@lab does not have storage.buckets.get access to the bucket")

    monkeypatch.setattr("orbax.checkpoint._src.path.gcs_utils.get_bucket", forbidden)
    Bucket(f"{gs}/checkpoints").write("1/commit_success.txt", b"")
    with pytest.raises(CheckpointError, match=r"storage\.buckets\.get, as in roles/storage\.legacyBucketReader"):
        Checkpoints(place(gs) / "checkpoints", CheckpointConfig())


def metrics(url: str) -> list[str]:
    """The metrics in the bucket without timing."""
    lines = (Bucket(url).read("metrics.jsonl") or b"").splitlines()
    return [json.dumps({k: v for k, v in json.loads(line).items() if k != "timing"}) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["saving", "between"])
def test_a_killed_run_resumes_elsewhere(runs: Runs, request, moment, monkeypatch, tmp_path, capsys):
    """kill -9 while a checkpoint is written to Cloud Storage, or between two on S3; then another machine."""
    url = request.getfixturevalue("gs" if moment == "saving" else "s3") + "/runs"
    name = f"killed-{moment}"
    there, run = Bucket(f"{url}/{name}/checkpoints"), place(f"{url}/{name}")

    def incomplete() -> bool:
        return len(there.folders()) > len(there.folders_with("commit_success.txt")) > 0

    def between() -> bool:
        complete = there.folders_with("commit_success.txt")
        return len(complete) > 0 and there.folders() == complete

    monkeypatch.setenv("SOLO_CACHE", str(tmp_path / "first"))
    process = runs.start(name, f"folder={url}")
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if incomplete() if moment == "saving" else between():
            process.send_signal(signal.SIGKILL)
            break
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    stored = metrics(str(run))
    assert 0 < len(stored) < STEPS
    newest = int(complete_checkpoints(run / "checkpoints")[-1].name)
    assert json.loads(stored[-1])["step"] >= newest  # no checkpoint is newer than its metrics
    monkeypatch.setenv("SOLO_CACHE", str(tmp_path / "second"))
    runs.finish(name, f"folder={url}")
    assert metrics(str(run)) == runs.lines("whole")
    assert not [name for name in there.folders() if not name.isdigit()]
    assert set(there.folders()) == set(there.folders_with("commit_success.txt"))
    if moment == "between":
        return

    monkeypatch.setenv("SOLO_CACHE", str(tmp_path / "third"))
    folder = RunFolder.existing(run)
    assert goodput(folder.goodput_file).attempts == 2
    assert "state" in json.loads(json.dumps(goodput(folder.goodput_file).as_json()))
    assert main(["evaluate", str(run)]) == 0
    assert f"report: {run}/report.html" in capsys.readouterr().out
    assert metrics(str(run)) == runs.lines("whole")
    mine, local = solo.load(str(run)), solo.load(runs.path("whole"))
    for path, values in local.parameters.items():
        np.testing.assert_array_equal(mine.parameters[path], values)
    step = complete_checkpoints(run / "checkpoints")[0].name
    assert main(["generate", f"{run}@{step}", "--prompt", "what?", "--max-new-tokens", "2"]) == 0
    export(str(run), tmp_path / "exported", "native", verified=False)
    assert (tmp_path / "exported" / "model.safetensors").exists()
