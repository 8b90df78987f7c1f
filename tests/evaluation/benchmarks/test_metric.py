import numpy as np
import pytest

from solo.evaluation.benchmarks.item import Item, Judged, Scored
from solo.evaluation.benchmarks.metric import MME, Detection, Mean, MeanOfGroups


def judged(name: str, *scores: float, **labels: str) -> Judged:
    answers = tuple(Scored(f"{name}#{number}", "", None, score) for number, score in enumerate(scores))
    return Judged(Item(name, (), "", ("a",), labels=labels), answers)


def test_an_item_counts_as_its_worst_answer() -> None:
    assert Mean().of([judged("a", 1), judged("b", 1, 1, 0), judged("c", 0.5), judged("d", 1, 1)]) == 62.5
    assert np.isnan(Mean().of([]))


def test_a_bootstrap_is_a_matrix_product() -> None:
    metric = Mean(scale=1)
    units = metric.units([judged("a", 1), judged("b", 0), judged("c", 0.5)])
    weights = np.array([[3, 0, 0], [0, 1, 2], [1, 1, 1], [0, 0, 0]])
    assert metric.value(weights @ metric.tallies(units)).tolist() == pytest.approx([1, 1 / 3, 0.5, np.nan], nan_ok=True)


def test_a_mean_of_groups_weighs_groups_equally() -> None:
    items = [judged("1", 1, part="x"), judged("2", 0, part="x"), judged("3", 0, part="x"), judged("4", 1, part="y")]
    metric = MeanOfGroups("part")
    assert metric.of(items) == pytest.approx(100 * (1 / 3 + 1) / 2)
    tallies = metric.tallies(metric.units(items))
    assert metric.value(np.array([1, 1, 1, 0]) @ tallies) == pytest.approx(100 / 3)  # a resample without group y


def detected(reference: str, said: str | None, categories: str) -> Judged:
    item = Item(f"{reference}{said}{categories}", (), "", (reference,), labels={"category": categories})
    return Judged(item, (Scored(item.id, "", said, float(said == reference)),))


def test_f1_of_both_conventions() -> None:
    items = [
        detected("yes", "yes", "popular"),
        detected("yes", "yes", "random"),
        detected("yes", "no", "popular"),
        detected("yes", None, "popular"),
        detected("no", "yes", "popular"),
        detected("no", None, "random"),
    ]
    expected = {  # true positives 2, false positives 1, false negatives 1 or, with the answer that is neither, 2
        True: {"precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "yes_ratio": 50},
        False: {"precision": 200 / 3, "recall": 50, "f1": 400 / 7, "yes_ratio": 50},
    }
    for lenient, values in expected.items():
        found = {name: Detection(name, lenient).of(items) for name in values}
        assert found == pytest.approx(values)
    assert Detection("f1", True).of([detected("no", "no", "popular")]) == 0


def test_an_item_of_several_categories_counts_in_each() -> None:
    items = [detected("yes", "yes", "popular|random|adversarial"), detected("yes", "no", "popular")]
    assert Detection("recall", True).of(items) == 75
    assert Mean(spread="category").of(items) == 75
    assert Mean().of(items) == 50
    assert len(Mean(spread="category").units(items)) == 2  # it is resampled as one


def test_mme_adds_accuracy_and_accuracy_plus() -> None:
    items = [
        judged("1", 1, category="OCR", image="a.png"),
        judged("2", 1, category="OCR", image="a.png"),
        judged("3", 1, category="OCR", image="b.png"),
        judged("4", 0, category="OCR", image="b.png"),
        judged("5", 1, category="count", image="a.png"),  # another image of the same name
        judged("6", 1, category="count", image="a.png"),
        judged("7", 0, category="code_reasoning", image="a.png"),
        judged("8", 0, category="code_reasoning", image="a.png"),
    ]
    assert MME("OCR", ["OCR"]).of(items) == 75 + 50
    assert MME("score", ["OCR", "count", "code_reasoning", "posters"]).of(items) == 125 + 200 + 0
    assert np.isnan(MME("posters", ["posters"]).of(items))
    assert len(MME("score", ["OCR"]).units(items)) == 4
