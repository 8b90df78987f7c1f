"""What Google's launcher, xpk, requests for every TPU slice: an independent oracle, kept as data in xpk_answers.json.

    python3 -m venv XPK && XPK/bin/pip install xpk==1.16.0
    python -m tests.launch.xpk_answers XPK/bin/xpk

renews the data. xpk renders manifests without an account, but its own dependencies exclude ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from solo.chips import CHIPS
from solo.machines import Machine, parse_machine

PATH = Path(__file__).with_suffix(".json")
RESTARTS = 20
_KEPT_OF_A_POD = ("nodeSelector", "hostNetwork", "dnsPolicy", "restartPolicy")


def slices() -> list[tuple[str, int]]:
    """Every TPU slice that GKE offers, as (machine, number of slices); and two slices of one of them."""
    offered = [
        (f"{name}-{size * chip.cores}", 1)
        for name, chip in CHIPS.items()
        if chip.is_tpu and chip.gke_accelerator
        for size in sorted(chip.sizes)
    ]
    return [*offered, ("v6e-16", 2)]


def facts(job_set: dict[str, Any]) -> dict[str, Any]:
    """What two launchers must agree on: the machines, the pods' placement, and which exit statuses restart."""
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (by_code,) = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if rule.get("onExitCodes")]
    codes = set(by_code["values"])
    return {
        "slices": replicated["replicas"],
        "hosts": [job["parallelism"], job["completions"]],
        "backoffLimit": job["backoffLimit"],
        "restarted": ranges(set(range(1, 256)) - codes if by_code["operator"] == "In" else codes),
        "maxRestarts": job_set["spec"]["failurePolicy"]["maxRestarts"],
        "annotations": job_set["metadata"]["annotations"],
        "pod": {name: pod[name] for name in _KEPT_OF_A_POD},
        "tolerated": sorted(toleration["key"] for toleration in pod["tolerations"]),
        "resources": pod["containers"][0]["resources"],
        "privileged": pod["containers"][0]["securityContext"],
    }


def ranges(numbers: set[int]) -> str:
    """Numbers as text, such as 42,127-255."""
    ends = [number for number in sorted(numbers) if number - 1 not in numbers]
    lasts = [number for number in sorted(numbers) if number + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(ends, lasts, strict=True))


def xpk_type(machine: Machine) -> str:
    """xpk's name of a slice."""
    return machine.accelerator_type or machine.name


def ask(xpk: str, on: str, number: int, home: Path) -> dict[str, Any]:
    """Returns the facts of xpk's manifest, or why it refuses."""
    file = home / "manifest.yaml"
    file.unlink(missing_ok=True)
    command = [
        *(xpk, "workload", "create", f"--tpu-type={xpk_type(parse_machine(on))}", f"--num-slices={number}"),
        *("--cluster=c", "--project=p", "--zone=us-east5-a", "--workload=run", "--docker-image=image"),
        *(f"--max-restarts={RESTARTS}", "--restart-on-exit-codes=42", "--command=true"),
        *("--dry-run", "--skip-validation", f"--output-manifest-file={file}"),
    ]
    done = subprocess.run(command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True)
    if not file.exists():
        return {"refused": (done.stdout + done.stderr).strip().splitlines()[-1].partition(" (")[0]}
    return facts(yaml.safe_load(file.read_text()))


def main(xpk: str) -> None:
    """Writes xpk's answers."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        account = {**os.environ, "HOME": folder}
        subprocess.run([xpk, "config", "set", "send-telemetry", "false"], env=account, check=True, capture_output=True)
        said = subprocess.run([xpk, "version"], env=account, capture_output=True, text=True).stdout
        (version,) = re.findall(r"xpk_version: (\S+)", said)
        answers = {f"{number} x {on}": ask(xpk, on, number, home) for on, number in slices()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
    PATH.write_text(f'{{"version": {json.dumps(version)},\n "answers": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main(sys.argv[1])
