import numpy as np
import pytest

from solo.evaluation.benchmarks.item import Item, Judged, Scored
from solo.evaluation.benchmarks.metric import Mean


def judged(name: str, *scores: float) -> Judged:
    answers = tuple(Scored(f"{name}#{number}", "", None, score) for number, score in enumerate(scores))
    return Judged(Item(name, (), "", ("a",)), answers)


def test_an_item_counts_as_its_worst_answer() -> None:
    assert Mean().of([judged("a", 1), judged("b", 1, 1, 0), judged("c", 0.5), judged("d", 1, 1)]) == 62.5
    assert np.isnan(Mean().of([]))


def test_a_bootstrap_is_a_matrix_product() -> None:
    metric = Mean(most=1)
    units = metric.units([judged("a", 1), judged("b", 0), judged("c", 0.5)])
    weights = np.array([[3, 0, 0], [0, 1, 2], [1, 1, 1], [0, 0, 0]])
    assert metric.value(weights @ metric.tallies(units)).tolist() == pytest.approx([1, 1 / 3, 0.5, np.nan], nan_ok=True)
