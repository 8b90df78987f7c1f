"""`solo evaluate --tasks` on files of small benchmarks, with a small model."""

import base64
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from solo.cli import main
from solo.config import ConfigError, MeshConfig, TokenizerConfig
from solo.data.text import train_tokenizer
from solo.evaluation.scoring.digest import weights_digest
from solo.evaluation.scoring.request import Request
from solo.evaluation.scoring.run import evaluate_benchmarks
from solo.files import read_json_lines
from solo.sharding.mesh import make_mesh
from solo.training.observer import Observer
from tests.evaluation.scoring.questions import png, write_tsv
from tests.tiny import save_run, tiny_config, tiny_monolith


class Told(Observer):
    """Keeps what is said, and stops after some batches."""

    def __init__(self, batches: float = float("inf")):
        super().__init__()
        self.said: list[str] = []
        self._left = batches

    def say(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        if re.search("answering .*: [1-9]", text):
            self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def tokenizer():
    words = ["a", "red", "blue", "circle", "square", "triangle", "what", "which", "shape", "this", "yes", "no"]
    texts = [" ".join(words[number:] + words[:number]) + "?" for number in range(20)]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=310))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Models are loaded onto one device, which compiles in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("solo.inference.loading.local_mesh", lambda: make_mesh(MeshConfig(), jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer) -> Path:
    """A run with two checkpoints, and a benchmark, whose every third reference is what step 1 answers."""
    folder = tmp_path_factory.mktemp("scoring")
    save_run(tiny_monolith(tokenizer, tiny_config()), folder / "run", 1, 2)
    (folder / "files").mkdir()
    columns = ["index", "image", "question", "answer", "category"]
    pictures = [png(16, 24, 0), png(40, 56, 1)]
    rows = [[str(n), pictures[n // 10], f"what is shape {n % 10}?", "?", "ab"[n % 2]] for n in range(20)]
    write_tsv(folder / "files" / "OCRBench.tsv", columns, rows)
    said = {line["key"]: line["answer"] for line in predictions(ask(folder, "ocrbench", output="first"))}
    for number in range(0, 20, 3):
        rows[number][3] = said[str(number)]
    write_tsv(folder / "files" / "OCRBench.tsv", columns, rows)
    return folder


def ask(place: Path, *tasks: str, output: str, observer: Observer | None = None, **changes):
    request = {"max_new_tokens": 4, "batch_rows": 8, "files": (str(place / "files"),), **changes}
    request.setdefault("reference", str(place / "run@1"))
    return evaluate_benchmarks(Request(tasks=tasks, output=str(place / output), **request), observer or Told())


def predictions(outcome, name: str = "") -> list[dict]:
    path = outcome.folder / f"{name or outcome.tasks[0].task.benchmark.name}.jsonl"
    return [line for line in read_json_lines(path)[0] if line["kind"] == "prediction"]


def page_data(folder: Path) -> dict:
    page = (folder / "page.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def whole(place):
    """An evaluation that was never stopped, on one device's worth of rows."""
    return ask(place, "ocrbench", output="whole", baselines=("removed", "blanked"))


def test_every_prediction_says_what_was_asked_and_by_whom(place, whole) -> None:
    lines = predictions(whole)
    assert [line["key"] for line in lines] == [str(number) for number in range(20)]
    line = lines[3]
    assert line["prompt"] == "<image>\nwhat is shape 3?"
    assert line["references"] == [line["answer"]]
    assert (line["extracted"], line["score"], line["labels"]["category"]) == (line["answer"], 1.0, "b")
    assert (line["convention"], line["images"], line["tokens"], line["cut"]) == ("lmms-eval", "shown", 4, True)
    assert line["model"] == f"{place}/run@1"
    score = whole.tasks[0].scores["shown"]
    assert score.value.value == 1000 * sum(line["score"] for line in lines) / 20
    assert score.value.low < score.value.value < score.value.high
    results = json.loads((whole.folder / "results.json").read_text())["tasks"]
    assert results["ocrbench"]["scores"]["shown"]["score"] == score.value.value
    assert results["ocrbench"]["scores"]["shown"]["summary"]["category/a"] == pytest.approx(400)
    assert results["ocrbench"]["scores"]["shown"]["clusters"] == 2
    assert (results["ocrbench"]["limit"], results["ocrbench"]["resamples"]) == (None, 2_000)


def test_results_of_other_weights_do_not_stay(place, whole) -> None:
    results = json.loads((whole.folder / "results.json").read_text())
    folder = place / "stays"
    folder.mkdir()
    (folder / "ocrbench.jsonl").write_bytes((whole.folder / "ocrbench.jsonl").read_bytes())
    for weights, stays in ((results["weights"], True), ("0" * 16, False)):
        # The same path may have been written in another way.
        before = {**results, "model": "run@1", "weights": weights, "tasks": {"mme": {"scores": {}}}}
        (folder / "results.json").write_text(json.dumps(before))
        ask(place, "ocrbench", output="stays")
        found = json.loads((folder / "results.json").read_text())
        assert (set(found["tasks"]), found["weights"]) == ({"ocrbench", *(["mme"] * stays)}, results["weights"])


def test_ways_that_an_earlier_call_asked_stay_while_the_scores_agree(place, whole) -> None:
    folder = place / "earlier_ways"
    shutil.copytree(whole.folder, folder)
    before = json.loads((folder / "results.json").read_text())["tasks"]
    for limit, ways, measures in (
        (None, {"shown", "removed", "blanked"}, {"multimodal_gain", "gain_over_blanked"}),
        (10, {"shown"}, set()),
    ):
        ask(place, "ocrbench", output="earlier_ways", limit=limit)
        found = json.loads((folder / "results.json").read_text())["tasks"]
        assert (set(found["ocrbench"]["scores"]), set(found["ocrbench"]["measures"])) == (ways, measures)
        assert (found == before) is (limit is None)


def test_the_measures_of_images_are_differences_of_the_scores(whole) -> None:
    scores, measures = whole.tasks[0].scores, whole.tasks[0].measures
    gain = measures["multimodal_gain"]
    assert gain.value == pytest.approx(scores["shown"].value.value - scores["removed"].value.value)
    assert gain.low <= gain.value <= gain.high
    assert measures["gain_over_blanked"].value == pytest.approx(
        scores["shown"].value.value - scores["blanked"].value.value
    )
    assert predictions(whole, "ocrbench.removed")[1]["prompt"] == "what is shape 1?"
    assert predictions(whole, "ocrbench.blanked")[1]["prompt"] == "<image>\nwhat is shape 1?"
    assert len({line["prompt_digest"] for line in predictions(whole, "ocrbench.removed")}) == 10


def test_leakage_is_never_below_zero(place) -> None:
    found = ask(place, "ocrbench", output="leak", baselines=("removed",), language_model=str(place / "run@2"))
    scores, leakage = found.tasks[0].scores, found.tasks[0].measures["leakage"]
    assert scores["language_model"].settings.model.endswith("run@2")
    without, before = scores["removed"].value.value, scores["language_model"].value.value
    assert leakage.value == max(0.0, without - before)
    assert leakage.low >= 0


def test_going_on_gives_the_files_of_an_evaluation_that_was_not_stopped(place, whole) -> None:
    path = place / "stopped" / "ocrbench.jsonl"
    for batches in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            ask(place, "ocrbench", output="stopped", observer=Told(batches))
    assert len(read_json_lines(path)[0]) == 1 + 2 * 8
    # A kill in the middle of a line.
    path.write_bytes(path.read_bytes()[:-40] + "\u00e9".encode()[:1])
    ask(place, "ocrbench", output="stopped")
    assert path.read_bytes() == (whole.folder / "ocrbench.jsonl").read_bytes()
    # Nothing is missing now, and nothing is answered.
    ask(place, "ocrbench", output="stopped", observer=Told(0))


def test_eight_devices_say_what_one_says(place, whole, monkeypatch) -> None:
    monkeypatch.setattr("solo.inference.loading.local_mesh", lambda: make_mesh(MeshConfig(), jax.devices()))
    spread = ask(place, "ocrbench", output="spread")
    assert (spread.folder / "ocrbench.jsonl").read_bytes() == (whole.folder / "ocrbench.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "run@2"}, "other weights"),
        ({"max_new_tokens": 5}, r"another max_new_tokens \(4, now 5\)"),
        ({"context": 40}, "another --context"),
        ({"context": 12}, "another --context"),
    ],
)
def test_predictions_that_were_made_otherwise_are_refused(place, whole, changes, words) -> None:
    if "reference" in changes:
        changes = {"reference": str(place / changes["reference"])}
    before = (whole.folder / "ocrbench.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=words):
        ask(place, "ocrbench", output="whole", **changes)
    assert (whole.folder / "ocrbench.jsonl").read_bytes() == before


def test_another_image_under_the_same_id_is_refused_unless_forced(place, whole, tmp_path) -> None:
    text = (place / "files" / "OCRBench.tsv").read_text().replace(png(16, 24, 0), png(16, 24, 9))
    (tmp_path / "OCRBench.tsv").write_text(text)
    folder = place / "changed"
    folder.mkdir()
    (folder / "ocrbench.jsonl").write_bytes((whole.folder / "ocrbench.jsonl").read_bytes())
    changes = {"output": "changed", "files": (f"ocrbench={tmp_path}/OCRBench.tsv",), "limit": 15}
    with pytest.raises(ConfigError, match=r"10 answers are to other prompts .* the first to '0'"):
        ask(place, "ocrbench", **changes)
    told = Told()
    forced = ask(place, "ocrbench", **changes, force=True, observer=told)
    assert [line["answer"] for line in forced.tasks[0].scores["shown"].lines[10:]] == [
        line["answer"] for line in predictions(whole)[10:15]
    ]
    assert "ocrbench: 5 earlier answers to questions that were not asked this time are kept" in told.said
    assert len(predictions(forced)) == 20


def test_images_too_large_for_the_context_are_made_smaller_and_counted(place) -> None:
    told = Told()
    score = ask(place, "ocrbench", output="small", context=50, observer=told).tasks[0].scores["shown"]
    assert [line["shrunk"] for line in score.lines] == [False] * 10 + [True] * 10
    assert any("10 of 20 prompts" in line and "made smaller" in line for line in told.said)
    score = ask(place, "ocrbench", output="none", context=12, observer=told).tasks[0].scores["shown"]
    assert score.count("too_long") == 20
    assert {(line["answer"], line["score"]) for line in score.lines} == {("", 0.0)}
    assert any("20 of 20 prompts" in line and "count as wrong" in line for line in told.said)
    # They fit now, and were never asked.
    with pytest.raises(ConfigError, match=r"20 answers are to other prompts .* --context"):
        ask(place, "ocrbench", output="none")


def test_a_damaged_image_is_named_by_question_file_and_row(place, tmp_path) -> None:
    text = (place / "files" / "OCRBench.tsv").read_text()
    whole = base64.b64decode(png(40, 56, 1))
    damaged = base64.b64encode(whole[:60] + bytes(30) + whole[90:]).decode()
    (tmp_path / "OCRBench.tsv").write_text(text.replace(png(40, 56, 1), damaged))
    with pytest.raises(ConfigError, match=r"ocrbench: question '10' \(.*OCRBench.tsv, row 1\d\): .*cannot be decoded"):
        ask(place, "ocrbench", output="damaged", files=(f"ocrbench={tmp_path}/OCRBench.tsv",))


def test_two_sets_of_predictions_are_compared_on_the_items_they_share(place, whole) -> None:
    found = ask(
        place, "ocrbench", output="other", reference=str(place / "run@2"), against=(str(whole.folder),), limit=6
    )
    (comparison,) = found.tasks[0].comparisons
    assert (comparison.items, comparison.only_mine, comparison.model) == (6, 0, f"{place}/run@1")
    assert comparison.other == pytest.approx(1000 / 3)
    assert comparison.difference.value == pytest.approx(comparison.mine - comparison.other)
    assert comparison.broken - comparison.fixed == pytest.approx(-6 * comparison.difference.value / 1000)
    with pytest.raises(ConfigError, match=r"it holds predictions of ocrbench, and none of pope"):
        ask(place, "pope", output="other", against=(str(whole.folder),), files=(f"pope={place}/files/OCRBench.tsv",))
    with pytest.raises(ConfigError, match=r"--against .*the folder holds no predictions"):
        ask(place, "ocrbench", output="other", reference=str(place / "run@2"), against=(str(place / "files"),))


def test_a_comparison_says_how_both_were_asked(place, whole, monkeypatch) -> None:
    renamed = place / "renamed.jsonl"
    renamed.write_bytes((whole.folder / "ocrbench.blanked.jsonl").read_bytes())
    monkeypatch.chdir(place)
    told = Told()
    changes = {"output": "ways", "reference": str(place / "run@2"), "limit": 12, "baselines": ("removed",)}
    found = ask(place, "ocrbench", against=(str(whole.folder), "./renamed.jsonl"), observer=told, **changes)
    assert {each.way for each in found.tasks[0].comparisons} == {"shown", "removed"}
    said = "is not compared: nothing was asked in that way now"
    assert f"ocrbench: --against renamed.jsonl {said}" in told.said
    assert f"ocrbench: --against {whole.folder}/ocrbench.blanked.jsonl {said}" in told.said
    results = json.loads((found.folder / "results.json").read_text())["tasks"]["ocrbench"]
    assert sorted(each["way"] for each in results["against"]) == ["removed", "shown"]
    (task,) = page_data(found.folder)["tasks"]
    assert {each["way"]: each["name"] for each in task["against"]} == {
        0: f"{place}/run@1",
        1: f"{place}/run@1, without images",
    }
    renamed.write_bytes((whole.folder / "ocrbench.jsonl").read_bytes())
    found = ask(place, "ocrbench", against=("./renamed.jsonl",), **changes)
    assert [each.way for each in found.tasks[0].comparisons] == ["shown"]


def test_the_digest_of_weights_knows_every_element_and_no_mesh(tokenizer) -> None:
    model = tiny_monolith(tokenizer, tiny_config(), devices=8)
    once = weights_digest(model)
    assert weights_digest(tiny_monolith(tokenizer, tiny_config())) == once
    head = np.array(model.parameters["head"])
    head[[0, 1], 0] = head[[1, 0], 0]
    assert weights_digest(model.with_parameters({**model.parameters, "head": jax.numpy.asarray(head)})) != once


def test_files_of_the_user_are_not_written_over(place, tmp_path) -> None:
    for name, content in (("results.json", '{"mine": 1}'), ("results.json", "text"), ("page.html", "<title>my page")):
        folder = tmp_path / f"{name} {len(content)}"
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ConfigError, match=rf"{name} exists, and was not written by solo evaluate; choose another"):
            ask(place, "ocrbench", output=folder, limit=2)
        assert (folder / name).read_text() == content
        assert len(list(folder.iterdir())) == 1
    ask(place, "ocrbench", output=folder, limit=2, force=True)
    ask(place, "ocrbench", output=folder, limit=2)
    with pytest.raises(ConfigError, match=r"page\.html is a file; results are written to a folder"):
        ask(place, "ocrbench", output=folder / "page.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "popee"], "did you mean 'pope'"),
        (["--tasks", "pope"], "--files pope=PATH"),
        (["--tasks", "pope", "--files", "popee=x"], "popee"),
        (["--tasks", "pope", "--limit", "0"], "--limit is 0"),
        (["--limit", "0"], "--limit goes with --tasks or --text"),
        (["--text", "a.txt", "--without-images"], "--without-images goes with --tasks"),
        (["--tasks", "pope", "--seed", "-1"], "--seed is -1"),
        (["--tasks", "pope", "--files", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(words, message, capsys) -> None:
    assert main(["evaluate", "no-such-run", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_names_of_metrics_are_whole(place, capsys, tmp_path) -> None:
    (tmp_path / "kept.txt").write_text("a red circle?")
    words = ["--text", str(tmp_path / "kept.txt"), "--output", str(tmp_path / "out"), "--language-model"]
    assert main(["evaluate", str(place / "run@1"), *words, str(place / "run@2")]) == 0
    said = capsys.readouterr().out.splitlines()
    names = ("bits_per_byte", "byte_perplexity", "token_perplexity")
    assert all(any(name in line for line in said) for name in names)


def test_the_command_prints_a_table(place, capsys) -> None:
    words = ["--tasks", "ocrbench", "--files", str(place / "files"), "--output", str(place / "printed")]
    words += ["--limit", "12", "--without-images", "--max-new-tokens", "4", "--batch-rows", "8"]
    assert main(["evaluate", str(place / "run@1"), *words]) == 0
    said = capsys.readouterr().out
    assert re.search(r"ocrbench +\d+\.\d +\d+\.\d to \d+\.\d +12", said)
    assert "multi-modal gain" in said
    assert str(place / "printed" / "results.json") in said
    data = page_data(place / "printed")
    (task,) = data["tasks"]
    assert (len(task["records"]), task["of"], task["ways"]) == (12, 12, ["with images", "without images"])
    assert len(data["images"]) == 2
    assert task["records"][3]["answers"][0]["score"] == 1
    assert task["records"][3]["prompt"] == "what is shape 3?"
