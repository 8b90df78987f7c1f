"""The processes of a run, as schedulers describe them."""

import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from solo.config import ConfigError
from solo.training.hosts import expand_counts, expand_nodes, find_hosts, seconds_of

NOWHERE = Path("/nonexistent")


def test_a_process_is_alone_by_default() -> None:
    assert find_hosts({}, NOWHERE) is None
    assert find_hosts({"JAX_COORDINATOR_ADDRESS": "a:1"}, NOWHERE) is None
    one = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    assert find_hosts(one, NOWHERE) is None
    # A batch script of SLURM without srun is one process.
    assert find_hosts({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, NOWHERE) is None


def test_explicit_variables() -> None:
    given = {"JAX_COORDINATOR_ADDRESS": "a:12", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    hosts = find_hosts(given, NOWHERE)
    assert hosts is not None
    assert (hosts.names, hosts.index, hosts.coordinator) == (("process 0", "process 1"), 1, "a:12")
    named = find_hosts({**given, "SOLO_HOST_NAMES": "x,y"}, NOWHERE)
    assert named is not None
    assert named.names == ("x", "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "set JAX_PROCESS_ID too"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be an integer, found 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "a"}, "the address of process 0 must be HOST:PORT, found 'a'"),
        ({"JAX_COORDINATOR_ADDRESS": "a:http"}, "must be HOST:PORT, found 'a:http'"),
        ({"JAX_COORDINATOR_ADDRESS": "a:99999"}, "must be HOST:PORT, found 'a:99999'"),
        ({"JAX_LOCAL_DEVICE_IDS": "0-3"}, "JAX_LOCAL_DEVICE_IDS must be numbers .* found '0-3'"),
        ({"JAX_PROCESS_ID": "2"}, "process 2 of 2 does not exist"),
        ({"SOLO_HOST_NAMES": "x"}, "has 1 names"),
    ],
)
def test_contradictory_variables_are_named(change: dict[str, str], message: str) -> None:
    given = {"JAX_COORDINATOR_ADDRESS": "a:12", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    with pytest.raises(ConfigError, match=message):
        find_hosts({**given, **change}, NOWHERE)


SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_slurm_with_a_task_for_each_gpu() -> None:
    hosts = find_hosts(SLURM, NOWHERE)
    assert hosts is not None
    assert hosts.names == ("gpu01", "gpu01", "gpu02", "gpu02")
    assert (hosts.index, hosts.local_devices) == (3, (1,))
    assert hosts.coordinator == "gpu01:62344"


def test_slurm_with_a_task_for_each_node_sees_all_of_its_gpus() -> None:
    """JAX's own detection would give such a task its first GPU only."""
    hosts = find_hosts({**SLURM, "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, NOWHERE)
    assert hosts is not None
    assert (hosts.names, hosts.local_devices) == (("gpu01", "gpu02"), None)


NODE_LISTS = {
    "one": ["one"],
    "a,b": ["a", "b"],
    "n[1-3]": ["n1", "n2", "n3"],
    "n[001-003,7],m": ["n001", "n002", "n003", "n7", "m"],
    "r[1-2]n[1-2]": ["r1n1", "r1n2", "r2n1", "r2n2"],
    "a-[9-11]-x,b[2]": ["a-9-x", "a-10-x", "a-11-x", "b2"],
}


@pytest.mark.parametrize("text", NODE_LISTS)
def test_node_lists(text: str) -> None:
    assert expand_nodes(text) == NODE_LISTS[text]
    if shutil.which("scontrol"):
        said = subprocess.run(["scontrol", "show", "hostnames", text], capture_output=True, text=True)
        if said.returncode == 0:  # without a cluster, some versions refuse
            assert said.stdout.split() == NODE_LISTS[text]


def test_counts_of_tasks() -> None:
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    assert expand_counts("8") == [8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x"}, r"must be like 2\(x3\),1, found '2\(x'"),
        ({"SLURM_STEP_TASKS_PER_NODE": ""}, r"must be like 2\(x3\),1, found ''"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, "has 2 nodes, and SLURM_STEP_TASKS_PER_NODE has tasks of 1"),
        ({"SLURM_STEP_NODELIST": "gpu[a-02]"}, "not a list of SLURM nodes: 'gpu"),
        ({"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID must be an integer, found 'x'"),
    ],
)
def test_slurm_variables_that_are_none_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_hosts({**SLURM, **change}, NOWHERE)


@pytest.mark.parametrize("name", ["MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "TPU_WORKER_ID"])
def test_variables_of_slices_that_are_no_numbers_are_named(name: str) -> None:
    given = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", name: "one"}
    with pytest.raises(ConfigError, match=f"{name} must be an integer, found 'one'"):
        find_hosts(given, NOWHERE)


def test_gke_slices_follow_each_other() -> None:
    given = {
        "TPU_WORKER_HOSTNAMES": "w0.run,w1.run",
        "TPU_WORKER_ID": "1",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8080",
    }
    hosts = find_hosts(given, NOWHERE)
    assert hosts is not None
    assert hosts.names == ("slice 0 worker 0", "slice 0 worker 1", "w0.run", "w1.run")
    assert (hosts.index, hosts.coordinator, hosts.local_devices) == (3, "run-slice-0-0.run:8476", None)
    single = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    assert find_hosts(single, NOWHERE) is None


@pytest.fixture
def metadata():
    """A metadata server; yields its contents and its address."""
    held: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.path.rpartition("/")[2]
            known = key in held and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(held.get(key, "").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield held, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_tpu_vm_asks_its_metadata(metadata, tmp_path: Path) -> None:
    held, address = metadata
    variables = {"GCE_METADATA_IP": address, "JAX_COORDINATOR_PORT": "8476"}
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio/0").touch()
    assert find_hosts(variables, tmp_path) is None  # Compute Engine, but no TPU VM
    held |= {"agent-worker-number": "1", "worker-network-endpoints": "a:0:10.0.0.1,b:1:10.0.0.2", "tpu-env": "X: '1'"}
    hosts = find_hosts(variables, tmp_path)
    assert hosts is not None
    assert (hosts.names, hosts.index, hosts.coordinator) == (("10.0.0.1", "10.0.0.2"), 1, "10.0.0.1:8476")
    held["tpu-env"] = "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.9.9'\n"
    sliced = find_hosts(variables, tmp_path)
    assert sliced is not None
    assert (len(sliced.names), sliced.index, sliced.coordinator) == (4, 3, "10.0.9.9:8476")
    held["worker-network-endpoints"] = "only"
    held["tpu-env"] = ""
    assert find_hosts(variables, tmp_path) is None
    # Where there is no TPU, nobody is asked.
    assert find_hosts({"GCE_METADATA_IP": "192.0.2.1"}, NOWHERE) is None


@pytest.mark.parametrize("text", ["abc", "-1", "0", "nan", "inf"])
def test_seconds_are_finite_and_above_zero(text: str) -> None:
    assert seconds_of({"WAIT": "1.5"}, "WAIT", 9) == 1.5
    assert seconds_of({"WAIT": ""}, "WAIT", 9) == 9
    with pytest.raises(ConfigError, match=f"WAIT must be a number of seconds above 0, found '{text}'"):
        seconds_of({"WAIT": text}, "WAIT", 9)
