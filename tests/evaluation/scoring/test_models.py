"""The models that `solo evaluate --tasks` takes: runs, checkpoints, averages, runs in buckets and repositories."""

from pathlib import Path

import fsspec
import jax
import pytest

from solo.config import ConfigError, MeshConfig
from solo.evaluation.scoring.request import Request, named_model, output_folder
from solo.evaluation.scoring.run import evaluate_benchmarks
from solo.interop.export import export
from solo.sharding.mesh import make_mesh
from solo.training.observer import Observer
from tests.data.buckets import _s3, s3  # noqa: F401
from tests.evaluation.scoring.questions import png, write_tsv
from tests.tiny import save_run, tiny_config, tiny_monolith


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models")
    rows = [[str(n), png(16, 16, n), "what is this?", "a"] for n in range(3)]
    write_tsv(folder / "OCRBench.tsv", ["index", "image", "question", "answer"], rows)
    return save_run(tiny_monolith(tiny_tokenizer, tiny_config()), folder / "run", 3, 5, ema=0.5)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOLO_CACHE", str(tmp_path / "machine"))
    one = lambda: make_mesh(MeshConfig(), jax.devices()[:1])  # noqa: E731
    monkeypatch.setattr("solo.inference.loading.local_mesh", one)
    monkeypatch.setattr("solo.loading.local_mesh", one)


def answers(run: Path, reference: str, **changes) -> tuple[Path, list[str]]:
    files = (str(run.parent),)
    request = Request(reference, tasks=("ocrbench",), files=files, max_new_tokens=3, batch_rows=4, **changes)
    outcome = evaluate_benchmarks(request, Observer())
    return outcome.folder, [line["answer"] for line in outcome.tasks[0].scores["shown"].lines]


def test_every_name_of_a_checkpoint_stands_for_the_same_one(run) -> None:
    assert named_model(str(run)) == named_model(f"{run}@5") == named_model(f"{run}@latest")
    assert named_model(str(run)).name == f"{run}@5"
    assert named_model(str(run / "checkpoints" / "3")).name == f"{run}@3"
    assert named_model(str(run), "ema").name == f"{run}@5 (ema)"
    with pytest.raises(ValueError, match="has no checkpoint of step 4"):
        named_model(f"{run}@4")


def test_runs_averages_buckets_and_repositories_are_asked_alike(run, s3, tmp_path) -> None:  # noqa: F811
    folder, said = answers(run, str(run))
    assert folder == run / "benchmarks" / "5"
    assert answers(run, str(run / "checkpoints" / "3"))[0] == run / "benchmarks" / "3"
    folder, averaged = answers(run, str(run), weights="ema")
    assert folder == run / "benchmarks" / "5-ema"
    assert averaged != said
    files = fsspec.filesystem("s3")
    files.put(str(run), f"{s3}/runs/copied", recursive=True)
    folder, remote = answers(run, f"{s3}/runs/copied@5")
    assert (folder, remote) == (Path("benchmarks") / "copied@5", said)
    export(run, tmp_path / "repository", layout="native", verified=False)
    folder, exported = answers(run, str(tmp_path / "repository"))
    assert (folder, exported) == (Path("benchmarks") / "repository", said)


def test_the_text_path_of_a_model_leaks_nothing(run, tmp_path) -> None:
    export(run, tmp_path / "text", layout="llama", verified=False)
    request = Request(
        str(run),
        tasks=("ocrbench",),
        files=(str(run.parent),),
        output="leak",
        max_new_tokens=3,
        batch_rows=4,
        baselines=("removed",),
        language_model=str(tmp_path / "text"),
    )
    (found,) = evaluate_benchmarks(request, Observer()).tasks
    mine, other = ([line["answer"] for line in found.scores[name].lines] for name in ("removed", "language_model"))
    assert other == mine
    assert found.measures["leakage"][:3] == (0, 0, 0)
    with pytest.raises(ConfigError, match="this is a text model and cannot read images"):
        answers(run, str(tmp_path / "text"))


def test_predictions_are_not_appended_to_in_a_bucket(run) -> None:
    request = Request(str(run), tasks=("ocrbench",), output="gs://bucket/out")
    with pytest.raises(ConfigError, match="which buckets do not offer"):
        output_folder(request, named_model(str(run)))
