"""The command line: help without jax, and clear usage errors."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from solo.cli import main
from solo.config import load_config
from solo.data.rows.loader import WorkerError
from solo.faults import fault_of
from solo.statuses import may_be_retried


@pytest.mark.parametrize(
    "verb",
    [
        [],
        *([verb] for verb in ("prepare", "inspect", "train", "generate", "import", "export", "plan", "evaluate")),
        *([verb] for verb in ("sweep", "goodput", "fit", "launch", "chat")),
        ["launch", "gke"],
    ],
)
def test_help_loads_nothing_heavy(verb: list[str]) -> None:
    code = (
        "import sys, solo.cli\n"
        "try: solo.cli.main([*sys.argv[1:], '--help'])\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = {'jax', 'numpy', 'scipy', 'matplotlib', 'pydantic', 'rich', 'orbax', 'grain'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} were imported' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *verb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: solo" in done.stdout


def test_importing_solo_does_not_import_jax() -> None:
    done = subprocess.run([sys.executable, "-c", "import sys, solo; sys.exit('jax' in sys.modules)"])
    assert done.returncode == 0


def test_preparing_data_does_not_import_jax() -> None:
    modules = "solo.data.store.prepare, solo.data.planning.stage_plan, solo.data.rows.loader"
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_fitting_a_law_does_not_import_jax() -> None:
    modules = "solo.scaling.laws.result, solo.scaling.laws.simulate, solo.scaling.report.page"
    code = f"import sys, {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "missing.yaml"], "cannot read config missing.yaml"),
        (["train", "configs/quickstart.yaml", "modle.width=3"], "did you mean 'model'?"),
        (["train", "configs/quickstart.yaml", "stages.0.steps=many"], "stages.0.steps"),
        (["generate", "nowhere", "--prompt", "hello"], "nowhere"),
        (["generate", "nowhere"], "--prompt"),
        (["generate", "nowhere", "--prompt", "hi", "--image", "configs/../README.md"], "README.md"),
        (["generate", "nowhere", "--prompt", "hi", "--max-new-tokens", "0"], "max_new_tokens"),
        (["generate", "nowhere", "--prompt", "hi", "--prefill-chunk-size", "0"], "prefill_chunk_size"),
        (["generate", "nowhere", "--prompt", ""], "nothing to answer"),
        (["evaluate", "nowhere"], "nowhere"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("solo: ")
    assert message in error
    assert "Traceback" not in error


def test_plan_counts_a_model(capsys) -> None:
    assert main(["plan", "configs/quickstart.yaml", "model.layers=3", "--count"]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if line.startswith("│")]
    *parts, total = [int(row[2].replace(",", "")) for row in rows]
    model = load_config("configs/quickstart.yaml").model
    assert (
        dict(zip([row[1] for row in rows], parts, strict=False))["ffn, text"] == 3 * 3 * model.width * model.ffn_width
    )
    assert sum(parts) == total
    assert f"as native: 39 tensors, {total:,} parameters" in said


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IsADirectoryError(errno.EISDIR, "A folder", "runs/a"), 2),
        (IsADirectoryError(errno.EISDIR, "A folder", "runs/.temporary", None, "runs/a"), 2),
        (OSError(errno.ENOSPC, "Full", "runs/a"), 1),
    ],
)
def test_an_error_of_a_file_is_one_line(monkeypatch, capsys, error: OSError, status: int) -> None:
    def refuse(*_) -> None:
        raise error

    monkeypatch.setattr("solo.evaluation.run.evaluate_folder", refuse)
    assert main(["evaluate", "runs/a"]) == status
    assert capsys.readouterr().err.strip() == f"solo: runs/a: {error.strerror}"


def test_an_error_while_closing_does_not_hide_the_one_that_names_a_file(monkeypatch, capsys) -> None:
    def refuse(*_) -> None:
        try:
            raise OSError(errno.ENOSPC, "Full", "runs/a/metrics.jsonl")
        finally:
            raise OSError(errno.ENOSPC, "Full")

    monkeypatch.setattr("solo.evaluation.run.evaluate_folder", refuse)
    assert main(["evaluate", "runs/a"]) == 1
    assert capsys.readouterr().err.strip() == "solo: runs/a/metrics.jsonl: Full"


def test_overrides_may_follow_options(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        assert main(["plan", "configs/models/solo_30m.yaml", *words]) == 0
        return capsys.readouterr().out

    fewer = printed("model.layers=3", "--count")
    assert printed("--count", "model.layers=3") == fewer
    assert printed("--count") != fewer


@pytest.mark.parametrize("words", [["--nonsense=1"], ["stray"]])
def test_other_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "configs/models/solo_30m.yaml", "--count", *words])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err


def test_a_fault_from_outside_ends_with_a_status_that_launchers_restart(monkeypatch, capsys) -> None:
    def killed(arguments) -> int:
        raise WorkerError("a process that reads data ended unexpectedly")

    monkeypatch.setattr("solo.verbs.train.run", killed)
    status = main(["train", "configs/quickstart.yaml"])
    assert status == 200
    assert may_be_retried(status)
    assert "a process that reads data ended unexpectedly" in capsys.readouterr().err


@pytest.mark.parametrize("platform", ["tpu", "cuda", "nonsense"])
def test_an_absent_platform_is_one_line_and_status_2(tmp_path: Path, platform: str) -> None:
    """Other libraries raise RuntimeError, or an AssertionError without a word."""
    done = subprocess.run(
        [sys.executable, "-m", "solo.cli", "train", "configs/quickstart.yaml", f"folder={tmp_path}"],
        # Another process of this machine may have loaded libtpu.
        env={**os.environ, "JAX_PLATFORMS": platform, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("solo: ")]
    assert f"JAX_PLATFORMS={platform}: this machine has no such devices" in line
    assert "Traceback" not in done.stderr


def test_an_unknown_flag_of_xla_is_not_retried(tmp_path: Path) -> None:
    """XLA names it, and ends the process."""
    done = subprocess.run(
        [sys.executable, "-m", "solo.cli", "train", "configs/quickstart.yaml", f"folder={tmp_path}"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_nonsense=1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode > 0
    assert not may_be_retried(done.returncode)
    assert "--xla_nonsense=1" in done.stderr


def test_devices_of_a_process_that_is_about_to_end_are_worth_another_try(monkeypatch) -> None:
    error = RuntimeError(
        "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 7."
        " (set JAX_PLATFORMS='' to automatically choose an available backend)"
    )
    fault = fault_of(error)
    assert fault is not None
    assert fault.text == "the devices cannot be used now (ABORTED: The TPU is already in use by process with pid 7.)"
    assert may_be_retried(fault.status)


def call_that_fails(arguments: object) -> None:
    """As a compiled function does that was called before."""
    raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")


@pytest.mark.parametrize("run", [lambda arguments: jnp.zeros(1 << 50), call_that_fails])
def test_too_little_memory_is_explained(monkeypatch, capsys, run: Callable) -> None:
    monkeypatch.setattr("solo.verbs.train.run", run)
    assert main(["train", "configs/quickstart.yaml"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("solo: the devices' memory does not suffice: Out of memory allocating ")
    assert "`solo plan CONFIG --on MACHINE`" in error
