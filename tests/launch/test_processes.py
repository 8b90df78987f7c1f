"""Two real processes of four virtual devices each: as one run, through every end that a process can have."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from solo.cli import main
from solo.launch.supervisor import _free_port
from solo.training.ledger import goodput
from tests.launch.tiny_run import (
    REPOSITORY,
    STEPS,
    environment,
    metrics,
    outputs,
    saved,
    steps,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.slow

# A slice for each process: its devices lie along fsdp, the slices along replica.
SLICES = ("mesh.replica=2",)
# For runs of which only the steps are compared.
UNMEASURED = "evaluation={}"


class Runs:
    """Starts runs in one folder; data and compiled code are shared between them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = write_config(folder, evaluates=True)
        self.environment = environment()

    def launch(self, name: str, *overrides: str) -> subprocess.Popen:
        """`launch local --yes` over two processes."""
        arguments = [str(self.config), "--on", "cpu-4", "--slices", "2", *SLICES, f"name={name}", *overrides, "--yes"]
        command = [sys.executable, "-m", "solo.cli", "launch", "local", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True)

    def start(
        self,
        name: str,
        *overrides: str,
        processes: int = 2,
        last: tuple[str, ...] = (),
        folders: tuple[Path, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> list[subprocess.Popen]:
        """The processes themselves, unsupervised; eight devices in all.

        `last` holds overrides of the last one alone, `folders` where each of them runs.
        """
        port, common = _free_port(), environment or self.environment
        variables = {"JAX_NUM_CPU_DEVICES": str(8 // processes)}
        if processes > 1:
            variables |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
        command = [sys.executable, "-m", "solo.cli", "train", str(self.config), *SLICES, f"name={name}", *overrides]
        return [
            subprocess.Popen(
                [*command, *(last if number == processes - 1 else ())],
                env={**common, **variables, "JAX_PROCESS_ID": str(number) if processes > 1 else ""},
                cwd=folders[number] if folders else None,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]

    def finish(self, processes: list[subprocess.Popen]) -> tuple[list[int], str]:
        said = "".join(error for _, error in outputs(processes))
        return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("processes"))
    launched = runs.launch("whole")
    _, said = launched.communicate(timeout=600)
    assert launched.returncode == 0, said
    return runs


def trained(runs: Runs, name: str) -> list[dict]:
    return [line for line in metrics(runs.folder, name) if line["kind"] == "train"]


def close(found: object, expected: object) -> bool:
    """Equal, but for the last digits of what floating point summed in another order."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in found)
    if isinstance(found, float):
        return found == pytest.approx(expected, rel=1e-4)
    return found == expected


def test_two_processes_compute_what_one_computes(runs: Runs) -> None:
    statuses, said = runs.finish(runs.start("one", processes=1))
    assert statuses == [0], said
    one, two = metrics(runs.folder, "one"), metrics(runs.folder, "whole")
    assert [line["step"] for line in two if line["kind"] == "train"] == list(range(1, STEPS + 1))
    # Tokens, targets, FLOPs are integers: equal to the last digit.
    assert len(one) == len(two)
    assert all(close(*lines) for lines in zip(one, two, strict=True))
    assert (runs.folder / "runs/whole/report.html").exists()


def test_a_killed_process_is_restarted_and_the_run_resumes(runs: Runs) -> None:
    launched = runs.launch("killed")
    wait_until(lambda: len(steps(runs.folder, "killed")) > 4)
    victim = subprocess.run(["pgrep", "-f", "cli train launches/killed/"], capture_output=True, text=True)
    os.kill(int(victim.stdout.split()[-1]), signal.SIGKILL)
    _, said = launched.communicate(timeout=600)
    assert launched.returncode == 0, said
    assert "ended with 137" in said
    assert metrics(runs.folder, "killed") == metrics(runs.folder, "whole")
    spent = goodput(runs.folder / "runs/killed/goodput.jsonl")  # one process writes, or steps would count twice
    assert (spent.attempts, spent.steps, spent.state) == (2, STEPS, "done")
    assert spent.seconds["between attempts"] > 1  # the supervisor's wait at least


def test_sigterm_to_one_stops_both_at_the_same_step_and_one_process_resumes(runs: Runs) -> None:
    overrides = (UNMEASURED, "checkpoint.every_steps=1000")
    processes = runs.start("stopped", *overrides)
    wait_until(lambda: len(steps(runs.folder, "stopped")) > 1)
    processes[1].send_signal(signal.SIGTERM)
    statuses, said = runs.finish(processes)
    assert statuses == [42, 42], said
    done = steps(runs.folder, "stopped")
    assert max(saved(runs.folder, "stopped")) == done[-1] < STEPS
    before, whole = trained(runs, "stopped"), trained(runs, "whole")
    assert before == whole[: len(before)]

    statuses, said = runs.finish(runs.start("stopped", *overrides, processes=1))
    assert statuses == [0], said
    after = trained(runs, "stopped")
    assert after[: len(before)] == before
    assert len(after) == len(whole)
    assert all(close(*lines) for lines in zip(after, whole, strict=True))


def test_a_fault_of_the_first_process_ends_both(runs: Runs) -> None:
    """Process 0 finds that the folder was made by another config; the other waits for it."""
    statuses, said = runs.finish(runs.start("whole", "seed=9"))
    assert statuses == [2, 2], said
    assert said.count("seed: 3 -> 9") == 2


def test_processes_with_different_configs_train_nothing(runs: Runs) -> None:
    messages = {
        "stages.1.optimizer.learning_rate=0.5": "0.001 in process 0, 0.5 in process 1",
        "seed=4": "3 in process 0, 4 in process 1",
        "stages.0.steps=5": "6 in process 0, 5 in process 1",
        "stages.0.mixture.digits=0.5": "1.0 in process 0, 0.5 in process 1",
    }
    statuses, said = runs.finish(runs.start("different", last=tuple(messages)))
    assert statuses == [2, 2], said
    for override, message in messages.items():
        assert said.count(f"{override.partition('=')[0]}: {message}") == 2  # in both logs
    assert not (runs.folder / "runs/different").exists()


def test_processes_with_different_data_train_nothing(runs: Runs, tmp_path: Path, monkeypatch) -> None:
    """The config is the same, but its relative folder holds other records on the second host."""
    source = 'data.sources.texts={"reader": "text", "options": {"path": "texts.jsonl"}}'
    words = (source, "data.folder=data", "stages.0.mixture.texts=1.0")
    hosts = (tmp_path / "north", tmp_path / "south")
    for host, text in zip(hosts, ("one two three", "four five"), strict=True):
        host.mkdir()
        (host / "texts.jsonl").write_text(f'{{"text": "{text}"}}\n' * 20)
        monkeypatch.chdir(host)
        assert main(["prepare", str(runs.config), *words, "--workers", "1"]) == 0
    statuses, said = runs.finish(runs.start("different", *words, folders=hosts))
    assert statuses == [2, 2], said
    assert said.count("stage first, prepared source texts: ") == 2


def test_processes_that_do_not_share_the_run_folder_train_nothing(runs: Runs, tmp_path: Path) -> None:
    hosts = (tmp_path / "north", tmp_path / "south")
    for host in hosts:
        host.mkdir()
    patient = {**runs.environment, "SOLO_SHARED_FOLDER_SECONDS": "1"}
    statuses, said = runs.finish(runs.start("different", "folder=runs", folders=hosts, environment=patient))
    assert statuses == [2, 2], said
    assert said.count("process 1 (") == 2
    assert f"{hosts[0] / 'runs/different'} of process 0" in said
    assert not list(hosts[0].glob("runs/different/.seen*"))


def test_unprepared_data_is_refused_at_once(runs: Runs) -> None:
    statuses, said = runs.finish(runs.start("unprepared", f"data.folder={runs.folder / 'elsewhere'}"))
    assert statuses[0] == 2, said
    assert "solo prepare" in said
    assert str(runs.folder / "runs/unprepared/config.yaml") in said
    assert not (runs.folder / "elsewhere" / "sources").exists()


@pytest.mark.parametrize("whose", ["process_1", "process_"])
def test_damaged_arrays_make_all_processes_fall_back_to_the_same_step(runs: Runs, whose: str) -> None:
    """Also if only one process reads what is damaged, and at once: libraries would wait for the others."""
    name = f"damaged-{whose}"
    shutil.copytree(runs.folder / "runs/whole", runs.folder / "runs" / name)
    *_, before, newest = saved(runs.folder, name)
    checkpoint = runs.folder / "runs" / name / "checkpoints" / str(newest)
    files = [path for path in checkpoint.rglob("d/*") if whose in str(path)]
    assert files
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    statuses, said = runs.finish(runs.start(name, UNMEASURED))
    assert statuses == [0, 0], said
    assert "never retrieved" not in said  # asyncio's pages about each array
    assert checkpoint.with_name(f"{newest}.damaged").is_dir()
    (resumed,) = [line for line in metrics(runs.folder, name) if line["kind"] == "resumed"]  # under another name
    assert resumed["step"] == before
    assert trained(runs, name) == trained(runs, "whole")


def test_a_missing_process_is_named(runs: Runs) -> None:
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    hosts = {"SOLO_HOST_NAMES": "north,south", "SOLO_START_TIMEOUT_SECONDS": "1"}
    command = [sys.executable, "-m", "solo.cli", "train", str(runs.config)]
    done = subprocess.run(command, env={**runs.environment, **variables, **hosts}, capture_output=True, text=True)
    assert done.returncode == 42
    assert "1 of 2 processes (JAX_* variables) did not start within 1 s: south (process 1)" in done.stderr


_ROWS = """
import numpy as np, jax, sys
from solo.training.distributed import first_then_others, join, leave, wait_for_all, OtherProcessError
hosts = join()
from solo.batch import Batch
from solo.config import ConfigError, MeshConfig
from solo.sharding.hosts import row_share, summed
from solo.sharding.mesh import device_batch, make_mesh
me = jax.process_index()
whole = Batch(*(np.arange(8 * 16).reshape(8, 16) + number for number in range(len(Batch._fields))))
for sizes in ({}, {"replica": 2}, {"data": 4, "fsdp": 2}, {"fsdp": 1, "context": 8}, {"fsdp": 2, "context": 4},
              {"fsdp": 1, "tensor": 8}, {"fsdp": 1, "context": 2, "tensor": 4}):
    mesh = make_mesh(MeshConfig(**sizes))
    share = row_share(mesh)
    rows = slice(share.index * 8 // share.count, (share.index + 1) * 8 // share.count)
    placed = device_batch(Batch(*(part[rows] for part in whole)), mesh, share.count)
    for part, expected in zip(placed, whole):
        assert part.shape == expected.shape, sizes
        for shard in part.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])
    # More than 32 bits; rows that two processes hold count once.
    mine = [int(whole.text[rows].sum()), (1 << 40) * (rows.stop - rows.start)]
    assert summed(mine, share, mesh)() == [int(whole.text.sum()), 8 << 40], sizes
# On a torus a host's rows are not neighbours: they take the rows that it loads, in order.
mesh = make_mesh(MeshConfig(), np.asarray(jax.devices()).reshape(2, 4).T.reshape(-1))
share, mine = row_share(mesh), [me, me + 2, me + 4, me + 6]
assert (share.index, share.count, share.first) == (me, 2, True)
loaded = Batch(*(part[4 * me : 4 * me + 4] for part in whole))
for part, expected in zip(device_batch(loaded, mesh, 2), loaded):
    assert sorted(shard.index[0].start for shard in part.addressable_shards) == mine
    for shard in part.addressable_shards:
        np.testing.assert_array_equal(shard.data[0], expected[mine.index(shard.index[0].start)])
assert summed([int(loaded.text.sum())], share, mesh)() == [int(whole.text.sum())]
devices = np.asarray(jax.devices())[[0, 4, 1, 2, 5, 6, 3, 7]]  # rows 0 and 3 are held by both processes
try:
    row_share(make_mesh(MeshConfig(fsdp=4, tensor=2), devices))
    sys.exit("not refused")
except ConfigError as error:
    assert "overlap in part" in str(error)
assert first_then_others(lambda: "first", lambda: "other") == ("first", "other")[me]
def fail(): raise ValueError("no data")
try:
    first_then_others(fail, lambda: None)
    sys.exit("did not fail")
except ValueError as error: assert str(error) == ("no data", "process 0: no data")[me]
def break_down(): raise RuntimeError("no disk")
try:
    first_then_others(break_down, lambda: None)
    sys.exit("did not fail")
except OtherProcessError as error: assert me == 1 and str(error) == "process 0: no disk"
except RuntimeError: assert me == 0
wait_for_all()
leave()
print("fine")
"""


def test_rows_and_counts_on_meshes_that_span_processes(runs: Runs) -> None:
    port = _free_port()
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ROWS],
            env={**runs.environment, **variables, "JAX_PROCESS_ID": str(number)},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert all("fine" in out for out, _ in said)


def test_two_processes_branch_by_the_config_alone(runs: Runs) -> None:
    """The first process chooses the checkpoint. A branch of the same config does what is left of the other run."""
    stable = runs.folder / "runs/stable"
    shutil.copytree(runs.folder / "runs/whole", stable)
    *_, chosen, newest = saved(runs.folder, "stable")
    shutil.rmtree(stable / "checkpoints" / str(newest))
    statuses, said = runs.finish(runs.start("branch", UNMEASURED, f'branch={{"run": "{stable}"}}'))
    assert statuses == [0, 0], said
    found, expected = ([(line["step"], line["loss"]) for line in trained(runs, name)] for name in ("branch", "whole"))
    assert found == expected[chosen:]
    assert 0 < len(found) < STEPS
    assert not (runs.folder / "runs/branch/origin").exists()
