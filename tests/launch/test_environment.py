"""Variables stand in a plan, secrets never do: on every target, from the command line to what the run finds."""

import io
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from solo.cli import main
from solo.config import ConfigError
from solo.launch.environment import Secret, secrets, variables
from solo.launch.supervisor import read_secrets
from tests.launch.tiny_run import REPOSITORY, write_config

VALUE = "s3cr3t-value-'$(x)\nsecond line"
CLOUD = ["--on", "v6e-8", "--image", "pkg.dev/p/solo:1", "--bucket", "gs://bucket"]


def test_a_bare_name_takes_the_value_from_here() -> None:
    assert variables(["A=1", "B", "C="], {"B": "two words"}) == {"A": "1", "B": "two words", "C": ""}
    assert secrets(["T", "U=there/key"], {}) == (Secret("T"), Secret("U", "there/key"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1A=2"], "'1A' is not a name of an environment variable"),
        (["A B=2"], "'A B' is not a name"),
        (["NOWHERE"], "it is not set here; set it, or write NOWHERE=VALUE"),
        (["A=1", "A=2"], "given twice"),
        (["JAX_PROCESS_ID=3"], "the launch itself sets it"),
        (["SLURM_PROCID=3"], "the launch itself sets it"),
        (["WANDB_API_KEY=x"], "use --secret WANDB_API_KEY"),
        (["HF_TOKEN"], "use --secret HF_TOKEN"),
        (["A=one\ntwo"], "several lines"),
    ],
)
def test_variables_that_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        variables(words, {})


def test_names_that_only_resemble_secrets_are_variables() -> None:
    words = ["TOKENIZERS_PARALLELISM=false", "HF_TOKEN_PATH=/x", "GOOGLE_APPLICATION_CREDENTIALS=/y"]
    assert len(variables(words, {})) == 3


@pytest.mark.parametrize(
    ("words", "others", "message"),
    [
        (["A"], {"A": "1"}, "given twice"),
        (["A", "A=x"], {}, "given twice"),
        (["A="], {}, "expected where its value is"),
        (["PATH"], {}, "the launch itself sets it"),
    ],
)
def test_secrets_that_are_refused(words: list[str], others: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        secrets(words, others)


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", VALUE)
    path = write_config(tmp_path)
    path.write_text(path.read_text().replace(f"{tmp_path}/", ""))
    return str(path)


def printed(capsys, *words: str) -> str:
    assert main(["launch", *words]) == 0
    said = capsys.readouterr()
    assert "s3cr3t" not in said.out + said.err
    return said.out


def file_in(script: str, name: str) -> str:
    match = re.search(rf"cat > \S*{re.escape(name)} <<'END_OF_FILE'\n(.*?)END_OF_FILE", script, re.DOTALL)
    assert match, name
    return match[1]


def test_gke_reads_secrets_from_kubernetes(config: str, capsys) -> None:
    given = ["--env", "A=1 $(B) $$", "--secret", "HF_TOKEN=hub/token", "--secret", "WANDB_API_KEY=wandb"]
    script = printed(capsys, "gke", config, *CLOUD, *given)
    _, job_set = yaml.safe_load_all(file_in(script, "jobset.yaml"))
    (job,) = job_set["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    found = {entry["name"]: entry for entry in container["env"]}
    assert found["A"] == {"name": "A", "value": "1 $$(B) $$$$"}  # Kubernetes makes $ of $$
    assert found["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert found["WANDB_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    # A secret that is missing ends the launch before machines are requested.
    checks = [script.index(f"kubectl get secret {name} --output=name") for name in ("hub", "wandb")]
    assert max(checks) < script.index("kubectl create")


def test_tpu_vms_read_secrets_from_secret_manager(config: str, tmp_path: Path, capsys) -> None:
    given = ["--zone", "us-east5-a", "--project", "here", "--env", "A=two words", "--secret", "HF_TOKEN=hub"]
    given += ["--secret", "OTHER=projects/there/secrets/s/versions/3"]
    script = printed(capsys, "tpu-vm", config, *CLOUD, *given)
    startup = file_in(script, "startup.sh")
    assert "HF_TOKEN=$(read_secret latest --secret=hub --project=here) || give_up" in startup
    assert "OTHER=$(read_secret 3 --secret=s --project=there) || give_up" in startup
    assert "--env 'A=two words'" in startup
    commands = script[script.rindex("END_OF_FILE") :]
    check = commands.index(
        "gcloud secrets versions describe latest --secret=hub --project=here '--format=value(state)'"
    )
    assert check < commands.index("queued-resources create")

    # The script itself, on a host whose programs only note how they were called.
    bin = tmp_path / "bin"
    bin.mkdir()
    value = VALUE.replace("'", "'\\''")
    fakes = {
        "gcloud": f"case \"$*\" in *access*) printf '%s' '{value}';; esac",
        "docker": f'echo docker "$@" >> {tmp_path}/calls; [[ $1 != run ]] || cat > {tmp_path}/stdin',
        **{name: "exit 0" for name in ("gcsfuse", "mountpoint", "curl", "mkdir", "sleep")},
    }
    for name, text in fakes.items():
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)
    for there, here in (("/var/log/solo.log", f"{tmp_path}/log"), ("mount=/mnt/solo", f"mount={tmp_path}/mnt")):
        startup = startup.replace(there, here)
    (tmp_path / "mnt" / "launches" / "tiny").mkdir(parents=True)
    run_folder = next((tmp_path / "mnt").glob("launches/*"))
    startup = re.sub(r"^launch=.*$", f"launch=launches/{run_folder.name}", startup, flags=re.MULTILINE)
    (tmp_path / "startup.sh").write_text(startup)
    done = subprocess.run(["bash", str(tmp_path / "startup.sh")], env={"PATH": f"{bin}:{os.environ['PATH']}"})
    assert done.returncode == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "stdin").read_bytes() == f"{VALUE}\0{VALUE}\0".encode()
    assert "s3cr3t" not in (tmp_path / "calls").read_text() + (tmp_path / "log").read_text() + startup
    assert "--secret=HF_TOKEN --secret=OTHER -- solo train" in (tmp_path / "calls").read_text()
    assert (run_folder / "ended").read_text() == "0\n"


def test_a_secret_that_cannot_be_read_ends_the_run_on_tpu_vms(config: str, capsys) -> None:
    given = ["--zone", "us-east5-a", "--secret", "HF_TOKEN=hub"]
    startup = file_in(printed(capsys, "tpu-vm", config, *CLOUD, *given), "startup.sh")
    functions = startup[startup.index("give_up() {") : startup.index('echo "launch: $(date')]
    reader = startup[startup.index("read_secret() {") : startup.index("# --init passes")]
    script = f"bucket=b; launch=l\ngcloud() {{ [[ $1 == storage ]] && cat; }}\nsleep() {{ :; }}\n{functions}\n{reader}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "launch: giving up: cannot read the secret HF_TOKEN\n1\n"


def test_slurm_exports_by_name_or_reads_a_private_file(config: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "a token"
    file.write_text(VALUE + "\n")
    file.chmod(0o640)
    words = ["slurm", config, "--on", "cpu-8", "--env", "A=it's", "--secret", "HF_TOKEN", "--secret", f"B={file}"]
    assert main(["launch", *words]) == 2
    assert "other users can read" in capsys.readouterr().err
    file.chmod(stat.S_IRUSR)
    script = printed(capsys, *words)
    assert "sbatch --export=ALL,HF_TOKEN launches/" in script
    job = file_in(script, "job.sbatch")
    settings = job[job.index("export A=") : job.index("configs=(")]
    done = subprocess.run(
        ["bash", "-c", f'{settings}\nprintf "%s|%s" "$A" "$B"; env | grep -c "^[AB]="'], capture_output=True, text=True
    )
    assert done.stdout == f"it's|{VALUE}2\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", "--on", "cpu-8", "--secret", "NOT_SET_HERE"], "it is not set here"),
        (["slurm", "--on", "cpu-8", "--secret", "A=nowhere"], "there is no file"),
        (["local", "--on", "cpu-8", "--secret", "A=file"], "set A here"),
        (["local", "--on", "cpu-8", "--secret", "NOT_SET_HERE"], "it is not set here"),
        (["gke", *CLOUD, "--secret", "HF_TOKEN"], "expected HF_TOKEN=SECRET/KEY"),
        (["gke", *CLOUD, "--secret", "A=Hub/token"], "kubectl create secret generic"),
        (["tpu-vm", *CLOUD, "--zone", "us-east5-a", "--secret", "HF_TOKEN"], "gcloud secrets create"),
        (["tpu-vm", *CLOUD, "--zone", "us-east5-a", "--secret", "A=a b"], "in Secret Manager"),
    ],
)
def test_a_secret_that_the_target_cannot_find_is_refused(words: list[str], message: str, config: str, capsys) -> None:
    target, *rest = words
    assert main(["launch", target, config, *rest]) == 2
    assert message in capsys.readouterr().err


def test_a_local_run_finds_both(config: str, tmp_path: Path, capsys) -> None:
    script = printed(capsys, "local", config, "--on", "cpu-8", "--env", "A=two words", "--secret", "HF_TOKEN")
    assert f"env 'A=two words' {sys.executable} -m solo.launch.supervisor" in script
    record = json.loads(file_in(script, "plan.json"))
    assert "HF_TOKEN" not in json.dumps(record)


def test_the_supervisor_reads_secrets_from_standard_input(tmp_path: Path) -> None:
    program = "import os; print(os.environ['A'] + '|' + os.environ['B'])"
    command = [
        sys.executable,
        "-m",
        "solo.launch.supervisor",
        "--run-folder",
        str(tmp_path),
        "--secret=A",
        "--secret=B",
    ]
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", program],
        input=f"{VALUE}\0two\0",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"{VALUE}|two\n"), done.stderr


def test_a_missing_secret_ends_the_supervisor(monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\0")))
    with pytest.raises(SystemExit, match="expected 2 secrets on standard input, found 1"):
        read_secrets(["A", "B"])
