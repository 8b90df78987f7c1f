"""A real SLURM on one machine: two nodes, each a network namespace with a hostname of its own. Root only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

NODES = {"solo-one": "10.77.31.1", "solo-two": "10.77.31.2"}
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "nsenter", "unshare", "ip")

_CONFIG = """
ClusterName=solo
SlurmctldHost=solo-one(10.77.31.1)
AuthType=auth/none
CredType=cred/none
# A job that is requeued waits until its old credential has expired.
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=solo-one NodeAddr=10.77.31.1 CPUs=1 State=UNKNOWN
NodeName=solo-two NodeAddr=10.77.31.2 CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    if os.geteuid():
        return "needs root, for network namespaces"
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"needs {', '.join(absent)} (Debian: slurm-wlm)" if absent else None


class Cluster:
    """Runs commands on its first node."""

    def __init__(self, folder: Path):
        self.folder = folder

    def command(self, arguments: Sequence[str], node: str = "solo-one") -> list[str]:
        """A command line that runs `arguments` on a node."""
        inside = (
            f"hostname {node} && mount --bind {self.folder}/hosts /etc/hosts"
            f" && export SLURM_CONF={self.folder}/slurm.conf HOSTNAME={node}"
            ' && exec "$@"'
        )
        # Not `ip netns exec`: it mounts a new /sys, where slurmd misses its cgroups.
        return ["nsenter", f"--net=/run/netns/{node}", "unshare", "-um", "sh", "-c", inside, "sh", *arguments]

    def run(self, *arguments: str, **options) -> str:
        """What a command on the first node says. Fails where it does."""
        done = subprocess.run(self.command(arguments), capture_output=True, text=True, **options)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes that are up, and gone afterwards."""
    made = Cluster(folder)
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder))
    (folder / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"{address} {node}\n" for node, address in NODES.items())
    )
    daemons: list[subprocess.Popen] = []
    try:
        _network()
        for node, daemon in (("solo-one", "slurmctld"), ("solo-one", "slurmd"), ("solo-two", "slurmd")):
            if daemon == "slurmd":
                (folder / node).mkdir()
            name = ["-N", node] if daemon == "slurmd" else []
            daemons.append(subprocess.Popen(made.command([daemon, "-D", *name], node), stderr=subprocess.DEVNULL))
        _wait_for_nodes(made)
        yield made
    finally:
        subprocess.run(made.command(["scancel", "--user=root"]), capture_output=True)
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)
        _ip("netns", "del", "solo-one", check=False)
        _ip("netns", "del", "solo-two", check=False)


def _network() -> None:
    for node in NODES:
        _ip("netns", "del", node, check=False)
        _ip("netns", "add", node)
    _ip("link", "add", "solo-a", "netns", "solo-one", "type", "veth", "peer", "name", "solo-b", "netns", "solo-two")
    for (node, address), link in zip(NODES.items(), ("solo-a", "solo-b"), strict=True):
        _ip("-n", node, "addr", "add", f"{address}/24", "dev", link)
        _ip("-n", node, "link", "set", link, "up")
        _ip("-n", node, "link", "set", "lo", "up")


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr


def _wait_for_nodes(made: Cluster) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done = subprocess.run(made.command(["sinfo", "-h", "-o", "%T %D"]), capture_output=True, text=True)
        if done.stdout.split() == ["idle", "2"]:
            return
        time.sleep(0.5)
    logs = "".join(path.read_text()[-2000:] for path in made.folder.glob("*.log"))
    raise AssertionError(f"the nodes did not come up: {done.stdout}{done.stderr}\n{logs}")
