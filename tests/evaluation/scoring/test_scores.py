"""Scores, intervals and comparisons of given answers to the files of benchmarks; no model."""

import pytest

from solo.config import ConfigError
from solo.data.record import Image, Turn
from solo.evaluation.benchmarks.definitions import benchmark
from solo.evaluation.scoring.answering import Task, as_shown, prompt_text
from solo.evaluation.scoring.predictions import Settings
from solo.evaluation.scoring.request import benchmark_files
from solo.evaluation.scoring.scores import Resampling, Score, compare, measures, score
from tests.evaluation.scoring.questions import mme, png, pope, write_tsv

HOW = Resampling(300, 0)


def scored(task: Task, answers: list[str], images: str = "shown", model: str = "a") -> Score:
    settings = Settings(task.benchmark.name, task.benchmark.convention, images, 4, "w", "c", model)
    lines = [
        {"key": key, "id": task.owners[key].id, "answer": answer, "prompt_digest": key, "shrunk": False}
        for key, answer in zip(task.questions, answers, strict=True)
    ]
    return score(task, settings, lines, HOW)


@pytest.fixture
def pope_task(tmp_path) -> Task:
    return Task.read(benchmark("pope"), [str(pope(tmp_path / "POPE.tsv", images=8))])


def right(task: Task) -> list[str]:
    return [question.item.references[0] for question in task.questions.values()]


def test_an_image_is_a_cluster_and_held_once(pope_task) -> None:
    assert len(pope_task.items) == 24
    assert len({id(item.images[0]) for item in pope_task.items}) == 8
    answers = right(pope_task)
    found = scored(pope_task, answers[:12] + ["no"] * 12)
    assert found.clusters == 8
    assert found.metric == "f1"
    # Six of twelve are "yes" in each half: 6 found of 12, and none claimed wrongly.
    assert found.value.value == pytest.approx(100 * 2 * 6 / (2 * 6 + 0 + 6))
    assert found.value.low < found.value.value < found.value.high


def test_both_questions_about_an_image_of_mme_are_one_unit(tmp_path) -> None:
    task = Task.read(benchmark("mme"), [str(mme(tmp_path / "MME.tsv"))])
    found = scored(task, ["Yes", "No", "Yes", "Yes", "Yes", "No", "No", "No"])
    # existence: all four right, both images; count: half of them, no image with both.
    assert found.summary["category/existence"] == 200
    assert found.summary["category/count"] == 50
    assert (found.value.value, found.clusters) == (250, 4)


def test_gain_and_leakage_are_those_of_the_paper(pope_task) -> None:
    answers = right(pope_task)
    scores = {
        "shown": scored(pope_task, answers),
        "removed": scored(pope_task, answers[:16] + ["no"] * 8),
        "language_model": scored(pope_task, answers[:20] + ["no"] * 4),
    }
    found = measures(scores, HOW)
    assert set(found) == {"multimodal_gain", "leakage"}
    assert found["multimodal_gain"].value == pytest.approx(100 - scores["removed"].value.value)
    assert found["leakage"].value == 0  # the language model knew more
    scores["removed"], scores["language_model"] = scores["language_model"], scores["removed"]
    leakage = measures(scores, HOW)["leakage"]
    assert leakage.value == pytest.approx(scores["removed"].value.value - scores["language_model"].value.value)
    assert leakage.low >= 0


def test_a_comparison_takes_the_items_that_both_have(pope_task) -> None:
    answers = right(pope_task)
    mine = scored(pope_task, answers)
    other = scored(pope_task, ["no"] * 24, model="b")
    settings = {**other.settings.__dict__}
    found = compare(pope_task, mine, settings, other.lines[:20], HOW, "b.jsonl")
    assert (found.model, found.items, found.only_mine) == ("b", 20, 4)
    assert (found.mine, found.other, found.difference.value) == (100, 0, 100)
    assert (found.fixed, found.broken) == (10, 0)
    with pytest.raises(ConfigError, match="its images is 'removed', not 'shown'"):
        compare(pope_task, mine, {**settings, "images": "removed"}, other.lines, HOW, "b.jsonl")
    changed = [{**line, "prompt_digest": "x"} for line in other.lines]
    left_out = [{**line, "too_long": True} for line in changed]
    assert compare(pope_task, mine, settings, left_out, HOW, "b.jsonl").items == 24
    with pytest.raises(ConfigError, match="another prompt or image"):
        compare(pope_task, mine, settings, changed, HOW, "b.jsonl")
    with pytest.raises(ConfigError, match="none of the items"):
        compare(pope_task, mine, settings, [], HOW, "b.jsonl")


def test_a_prediction_repeats_the_reference_that_it_is_judged_by(pope_task) -> None:
    stale = [
        {"key": key, "answer": "yes", "prompt_digest": key, "references": ["maybe"], "labels": {"category": "old"}}
        for key in pope_task.questions
    ]
    lines, _ = pope_task.judged(stale)
    for line, item in zip(lines, pope_task.items, strict=True):
        assert (line["references"], line["labels"]) == (list(item.references), dict(item.labels))
        assert line["score"] == (item.references[0] == "yes")


def test_prompts_without_images_keep_their_words(pope_task) -> None:
    picture = pope_task.items[0].images[0]
    turns = (Turn("user", (picture, "\nWhat is ", picture, "\n\nhere?")),)
    assert prompt_text(turns) == "<image>\nWhat is <image>\n\nhere?"
    assert as_shown(turns, "removed") == (Turn("user", ("What is ", "here?")),)
    assert as_shown(turns, "shown") == turns
    (blanked,) = as_shown(turns, "blanked")
    sizes = [part.size() for part in blanked.content if isinstance(part, Image)]
    assert sizes == [picture.size()] * 2
    assert blanked.content[0] != picture


def test_files_are_found_by_the_names_of_a_benchmark(tmp_path) -> None:
    columns = ["index", "image", "question", "answer"]
    write_tsv(tmp_path / "GQA_TestDev_Balanced.tsv", columns, [["1", png(8, 8, 0), "q", "a"]])
    (tmp_path / "pope").mkdir()
    assert benchmark_files(benchmark("gqa"), [str(tmp_path)]) == [str(tmp_path / "GQA_TestDev_Balanced.tsv")]
    assert benchmark_files(benchmark("pope_vlmevalkit"), [str(tmp_path)]) == [str(tmp_path / "pope")]
    assert benchmark_files(benchmark("mme"), [str(tmp_path), "mme=here.tsv"]) == ["here.tsv"]
    shards = [tmp_path / f"vqav2-0000{number}-of-00002.parquet" for number in range(2)]
    for each in (*shards, tmp_path / "POPE.tsv"):
        each.touch()
    assert benchmark_files(benchmark("vqav2"), [str(tmp_path)]) == list(map(str, shards))
    # The same items would count twice.
    with pytest.raises(ConfigError, match=r"holds several: POPE.tsv, pope; name one with --files pope=PATH"):
        benchmark_files(benchmark("pope"), [str(tmp_path)])
    with pytest.raises(ConfigError, match="--files mme=PATH"):
        benchmark_files(benchmark("mme"), [str(tmp_path)])
