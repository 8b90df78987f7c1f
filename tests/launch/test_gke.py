"""JobSets: their Jobs against Kubernetes' own schema, the JobSet around them against what its types document."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from solo.config import ConfigError, load_config
from solo.launch import gke
from solo.launch.plan import Plan
from solo.launch.request import Request
from solo.machines import parse_machine
from solo.statuses import may_be_retried
from tests.launch import xpk_answers
from tests.launch.tiny_run import write_config

VERSION = "1.34"
# Fields of jobset.x-k8s.io/v1alpha2 that are used, with the types they must have (api/jobset/v1alpha2/jobset_types.go).
SPEC = {"failurePolicy": dict, "replicatedJobs": list}
FAILURE_POLICY = {"maxRestarts": int, "rules": list}
RULE = {"name": str, "action": str, "onJobFailureReasons": list, "onJobFailureMessagePatterns": list}
REPLICATED_JOB = {"name": str, "replicas": int, "template": dict}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
MACHINES = ["v6e-8", "v6e-16", "v5e-8", "v5p-16", "tpu7x-16", "v4-16", "h100-16", "h200-8"]


def plan(folder: Path, on: str, slices: int = 1, batch_rows: int = 64, hosts: int | None = None, **options) -> Plan:
    path = write_config(folder)
    overrides = ["folder=runs", "data.folder=data", f"mesh.replica={slices}"]
    overrides += [f"stages.{stage}.batch_rows={batch_rows}" for stage in range(2)]
    config = load_config(path, overrides)
    given = {"image": "us-docker.pkg.dev/p/r/solo:1", "bucket": "gs://bucket", "hosts": hosts, **options}
    return gke.plan(Request("run", (config,), parse_machine(on, slices, hosts), 20, 5, given))


def documents(plan: Plan) -> tuple[dict, dict]:
    (file,) = plan.files
    config_map, job_set = yaml.safe_load_all(file.text)
    return config_map, job_set


def check_fields(value: dict, allowed: dict[str, type], where: str) -> None:
    for name, part in value.items():
        assert name in allowed, f"{where} has no field {name}"
        assert isinstance(part, allowed[name]), f"{where}.{name} is no {allowed[name]}"


def check_job_set(job_set: dict) -> None:
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(job_set) == {"apiVersion", "kind", "metadata", "spec"}
    check_fields(job_set["spec"], SPEC, "spec")
    check_fields(job_set["spec"]["failurePolicy"], FAILURE_POLICY, "spec.failurePolicy")
    for rule in job_set["spec"]["failurePolicy"]["rules"]:
        check_fields(rule, RULE, "rule")
        assert {"name", "action"} <= set(rule)  # the webhook would fill the name in; the schema wants it
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert rule["action"] in ACTIONS
    for replicated in job_set["spec"]["replicatedJobs"]:
        check_fields(replicated, REPLICATED_JOB, "replicatedJob")
        # Of a pod: <jobset>-<job>-<number>-<number>-<five letters>; a DNS label.
        assert len(f"{job_set['metadata']['name']}-{replicated['name']}-999-9999-abcde") <= 63
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "job"},
            "spec": replicated["template"]["spec"],
        }
        kubernetes_validate.validate(job, VERSION, strict=True)


def nulls(value: object) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return value is None or any(map(nulls, parts))


def pod(job_set: dict) -> dict:
    return job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("on", MACHINES)
def test_every_machine_makes_a_valid_job_set(on: str, tmp_path: Path) -> None:
    made = plan(tmp_path, on, queue="queue", spot=True, service_account="trainer", max_duration="1h")
    config_map, job_set = documents(made)
    check_job_set(job_set)
    kubernetes_validate.validate(config_map, VERSION, strict=True)
    assert not nulls(job_set)
    assert not nulls(config_map)
    assert re.search(r"[&*]id\d", made.files[0].text) is None  # no anchors of YAML


def test_the_schema_check_finds_faults(tmp_path: Path) -> None:
    def broken(change) -> dict:
        _, job_set = documents(plan(tmp_path, "v6e-8"))
        change(job_set)
        return job_set

    def job(job_set: dict) -> dict:
        return job_set["spec"]["replicatedJobs"][0]["template"]["spec"]

    wrong = [
        lambda js: js["spec"].update(ttlSecondsAfterFinishd=3),
        lambda js: job(js).update(backofLimit=0),
        lambda js: job(js).update(parallelism="four"),
        lambda js: js["spec"]["failurePolicy"]["rules"][0].pop("name"),
        lambda js: pod(js)["containers"][0].update(comand=["x"]),
    ]
    for change in wrong:
        with pytest.raises(Exception, match=r".") as caught:
            check_job_set(broken(change))
        assert isinstance(caught.value, AssertionError | kubernetes_validate.ValidationError)


def test_two_slices_are_two_jobs_of_a_node_pool_each(tmp_path: Path) -> None:
    _, job_set = documents(plan(tmp_path, "v6e-16", slices=2))
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 4, 4, 0)
    assert job_set["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert pod(job_set)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod(job_set)["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    assert (pod(job_set)["hostNetwork"], pod(job_set)["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")


def test_gpu_hosts_know_each_other(tmp_path: Path) -> None:
    from solo.training.hosts import find_hosts

    _, job_set = documents(plan(tmp_path, "h100-16"))
    container = pod(job_set)["containers"][0]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    variables = {entry["name"]: entry.get("value", "1") for entry in container["env"]}
    hosts = find_hosts(variables, devices=tmp_path)
    assert hosts is not None
    assert hosts.names == ("run-slice-0-0.run", "run-slice-0-1.run")
    assert (hosts.index, hosts.coordinator) == (1, "run-slice-0-0.run:8476")


@pytest.mark.parametrize("code", range(1, 256))
def test_pod_failure_rules_follow_the_exit_statuses(code: int, tmp_path_factory) -> None:
    _, job_set = job_set_once(tmp_path_factory)
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    (by_code,) = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert by_code["operator"] == "In"
    assert (code in by_code["values"]) == (not may_be_retried(code))


_made: list = []


def job_set_once(factory) -> tuple[dict, dict]:
    if not _made:
        _made.append(documents(plan(factory.mktemp("gke"), "v6e-8")))
    return _made[0]


def test_evictions_restart_without_counting_and_faults_end_the_run(tmp_path: Path) -> None:
    _, job_set = documents(plan(tmp_path, "v6e-8"))
    policy = job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 20

    def action(reason: str, message: str) -> str:
        """As the controller decides: the first rule that fits, else a counted restart."""
        for rule in policy["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [])
            if reason in rule["onJobFailureReasons"] and (
                not patterns or any(re.search(pattern, message) for pattern in patterns)
            ):
                return rule["action"]
        return "RestartJobSet"

    evicted = "Pod default/run-0 has condition DisruptionTarget matching FailJob rule at index 1"
    fault = "Container train for pod default/run-0 failed with exit code 2 matching FailJob rule at index 0"
    assert action("PodFailurePolicy", evicted) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("PodFailurePolicy", fault) == "FailJobSet"
    assert action("BackoffLimitExceeded", "Job has reached the specified backoff limit") == "RestartJobSet"


def test_the_run_folder_is_in_the_bucket(tmp_path: Path) -> None:
    config_map, job_set = documents(plan(tmp_path, "v6e-8"))
    path = tmp_path / "again.yaml"
    path.write_text(config_map["data"]["config.yaml"])
    config = load_config(path)
    assert (str(config.run_folder), config.data.folder) == ("/mnt/solo/runs/run", "/mnt/solo/data")
    (bucket,) = [volume["csi"] for volume in pod(job_set)["volumes"] if volume["name"] == "bucket"]
    assert bucket["volumeAttributes"]["bucketName"] == "bucket"


def test_only_the_first_pod_counts_starts_and_solo_gets_the_signals(tmp_path: Path, monkeypatch) -> None:
    _, job_set = documents(plan(tmp_path, "v6e-8"))
    bash, option, text = pod(job_set)["containers"][0]["command"]
    for program in ("solo", "python"):
        (tmp_path / program).write_text(
            f'#!/bin/sh\necho {program} "$@" >> {tmp_path}/calls\nexit ${{FAIL_{program}:-0}}\n'
        )
        (tmp_path / program).chmod(0o755)

    def run(job: str, pod: str, **variables: str) -> tuple[int, list[str]]:
        (tmp_path / "calls").write_text("")
        found = {"JOB_INDEX": job, "JOB_COMPLETION_INDEX": pod, "JOBSET_UID": "u-1", **variables}
        done = subprocess.run([bash, option, text], env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **found})
        return done.returncode, [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]

    assert run("0", "1") == (0, ["solo"])
    assert run("1", "0") == (0, ["solo"])
    assert run("0", "0") == (0, ["python", "solo"])
    assert run("0", "0", FAIL_python="1") == (1, ["python"])
    assert run("0", "0", FAIL_solo="42") == (42, ["python", "solo"])
    assert "\nexec solo train" in text


ANSWERS = json.loads(xpk_answers.PATH.read_text())


@pytest.mark.parametrize(("on", "slices"), xpk_answers.slices())
def test_xpk_requests_the_same(on: str, slices: int, tmp_path: Path) -> None:
    """Google's own launcher as an independent oracle; `xpk_answers` says how its answers are renewed."""
    theirs = ANSWERS["answers"][f"{slices} x {on}"]
    _, ours = documents(plan(tmp_path, on, slices, batch_rows=parse_machine(on, slices).devices))
    if "refused" in theirs:  # slices of one host that GKE offers and xpk does not
        assert on in ("v5e-1", "v5e-4")
        assert "invalid choice" in theirs["refused"]
    else:
        assert xpk_answers.facts(ours) == theirs


@pytest.mark.skipif(shutil.which("xpk") is None, reason="xpk is not installed")
def test_xpk_still_answers_so(tmp_path: Path) -> None:
    for on, slices in (("v6e-16", 2), ("v5e-8", 1), ("tpu7x-16", 1)):
        assert xpk_answers.ask("xpk", on, slices, tmp_path) == ANSWERS["answers"][f"{slices} x {on}"]


def test_a_placement_policy_has_xpks_name_or_the_given_one(tmp_path: Path) -> None:
    label = "cloud.google.com/placement-policy-name"

    def policy(on: str, **options) -> str | None:
        return pod(documents(plan(tmp_path, on, **options))[1])["nodeSelector"].get(label)

    assert policy("tpu7x-16") == "tpu7x-16-2x2x2-placement-policy"
    assert policy("tpu7x-8") is None  # one host
    assert policy("v6e-16") is None
    assert policy("v6e-16", placement_policy="mine") == "mine"
    # The value of a label has no slashes.
    assert policy("tpu7x-16", placement_policy="projects/p/regions/r/resourcePolicies/mine") == "mine"
    assert policy("tpu7x-16", placement_policy="none") is None


@pytest.mark.parametrize(("hosts", "expected"), [(None, (2, 4)), (1, (1, 8)), (2, (2, 4))])
def test_eight_chips_are_one_host_or_two(hosts: int | None, expected: tuple[int, int], tmp_path: Path) -> None:
    _, job_set = documents(plan(tmp_path, "v6e-8", hosts=hosts))
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    chips = pod(job_set)["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert (job["completions"], chips) == expected


def test_reservations_and_kinds_of_nodes(tmp_path: Path) -> None:
    options = {
        "reservation": "projects/owner/reservations/ours",
        "node_selector": ["team=vlm", "topology.kubernetes.io/zone=us-east5-a,us-east5-b"],
        "toleration": ["team=vlm:NoSchedule"],
        "priority": "high",
    }
    _, job_set = documents(plan(tmp_path, "v6e-16", **options))
    check_job_set(job_set)
    found = pod(job_set)
    assert found["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/reservation-name": "ours",
        "cloud.google.com/reservation-project": "owner",
        "team": "vlm",
    }
    (term,) = found["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-east5-a", "us-east5-b"]}
    ]
    assert found["tolerations"][1] == {
        "key": "team",
        "operator": "Equal",
        "value": "vlm",
        "effect": "NoSchedule",
    }
    assert found["priorityClassName"] == "high"
    with pytest.raises(ConfigError, match="--on and the other options decide it"):
        plan(tmp_path, "v6e-16", node_selector=["cloud.google.com/gke-tpu-topology=2x2"])


def test_a_deadline_ends_the_run_for_good(tmp_path: Path) -> None:
    _, job_set = documents(plan(tmp_path, "v6e-8", max_duration="6h"))
    check_job_set(job_set)
    assert job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["activeDeadlineSeconds"] == 6 * 3600
    (rule,) = [rule for rule in job_set["spec"]["failurePolicy"]["rules"] if rule["name"] == "deadline"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["DeadlineExceeded"])


def test_kubectl_never_changes_what_another_launch_made(tmp_path: Path) -> None:
    made = plan(tmp_path, "v6e-8", context="a context", namespace="team")
    assert [str(command) for command in made.commands] == [
        "kubectl '--context=a context' --namespace=team create --filename=launches/run/jobset.yaml"
    ]
    assert str(made.taken) == (
        "kubectl '--context=a context' --namespace=team get jobset run --ignore-not-found --output=name"
    )
    assert made.runs == ("gs://bucket/runs/run",)
    assert documents(made)[0]["immutable"] is True


def test_a_run_in_buckets_mounts_none(tmp_path: Path) -> None:
    overrides = ["folder=gs://runs/vlm", "data.folder=gs://data/prepared"]
    overrides += [f"stages.{stage}.batch_rows=64" for stage in range(2)]
    config = load_config(write_config(tmp_path), overrides)
    made = gke.plan(Request("run", (config,), parse_machine("v6e-16"), 20, 5, {"image": "image"}))
    config_map, job_set = documents(made)
    check_job_set(job_set)
    assert "gcsfuse" not in made.files[0].text
    assert "/mnt/solo" not in made.files[0].text
    assert made.runs == ("gs://runs/vlm/run",)
    assert "folder: gs://runs/vlm" in config_map["data"]["config.yaml"]
    command = pod(job_set)["containers"][0]["command"][2]
    assert '--state "gs://runs/vlm/run/restarts-$JOBSET_UID.json" --run-folder "gs://runs/vlm/run"' in command


def test_a_mounted_bucket_holds_what_is_not_in_one(tmp_path: Path) -> None:
    overrides = ["folder=gs://runs/vlm", "data.folder=data", *(f"stages.{n}.batch_rows=64" for n in range(2))]
    config = load_config(write_config(tmp_path), overrides)
    request = Request("run", (config,), parse_machine("v6e-16"), 20, 5, {"image": "image"})
    with pytest.raises(ConfigError, match="set --bucket"):
        gke.plan(request)
    mounted = replace(request, options={"image": "image", "bucket": "gs://data"})
    config_map, job_set = documents(gke.plan(mounted))
    assert "folder: /mnt/solo/data" in config_map["data"]["config.yaml"]
    assert {"name": "bucket", "mountPath": "/mnt/solo"} in pod(job_set)["containers"][0]["volumeMounts"]
