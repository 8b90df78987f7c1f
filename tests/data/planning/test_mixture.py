from __future__ import annotations

import numpy as np
import pytest

from solo.config import ConfigError, OptimizerConfig, StageConfig
from solo.data.planning.mixture import BLOCK, MixtureStream, SourceSize, draw_weights

SIZES = [SourceSize(50, 50, 5000), SourceSize(700, 1400, 14_000), SourceSize(9, 9, 90)]


def stage(**settings: object) -> StageConfig:
    fields = {"name": "s", "mixture": {"a": 3.0, "b": 1.0, "c": 0.0001}, "batch_rows": 4}
    if "epochs" not in settings:
        fields["steps"] = 10
    return StageConfig(**{**fields, "optimizer": OptimizerConfig(learning_rate=0), **settings})  # type: ignore[arg-type]


def test_every_block_holds_exact_counts() -> None:
    stream = MixtureStream(stage(mixture={"a": 3.0, "b": 0.5, "c": 0.0001}), SIZES, seed=0)
    for block in (0, 1, 77):
        source, _ = stream.lookup(np.arange(block * BLOCK, (block + 1) * BLOCK))
        # 3 : 0.5 * 2 chunks a document : almost zero, which still gets one draw.
        assert np.bincount(source).tolist() == [3071, 1024, 1]


def test_each_block_has_its_own_shuffle() -> None:
    stream = MixtureStream(stage(), SIZES, seed=0)
    first, second = (stream.lookup(np.arange(block * BLOCK, (block + 1) * BLOCK))[0] for block in (0, 1))
    assert not np.array_equal(first, second)
    assert np.count_nonzero(np.diff(first)) > BLOCK / 4


def test_draws_of_two_chunks_differ_by_at_most_one_after_a_block() -> None:
    stream = MixtureStream(stage(), SIZES, seed=0)
    for blocks in (1, 2, 5):
        source, chunk = stream.lookup(np.arange(blocks * BLOCK))
        for number, size in enumerate(SIZES[:2]):
            times = np.bincount(chunk[source == number], minlength=size.chunks)
            assert times.max() - times.min() <= 1


def test_every_epoch_has_its_own_order() -> None:
    sizes = [SourceSize(BLOCK, BLOCK, BLOCK)]  # an epoch is a block
    stream = MixtureStream(stage(mixture={"a": 1.0}), sizes, seed=0)
    epochs = [stream.lookup(np.arange(start, start + BLOCK))[1] for start in (0, BLOCK)]
    assert all(np.array_equal(np.sort(epoch), np.arange(BLOCK)) for epoch in epochs)
    assert abs(np.corrcoef(*epochs)[0, 1]) < 0.05
    sizes = [SourceSize(2 * BLOCK, 2 * BLOCK, BLOCK)]  # an epoch is two blocks: which chunks come in its first half?
    stream = MixtureStream(stage(mixture={"a": 1.0}), sizes, seed=0)
    first_halves = [set(stream.lookup(np.arange(start, start + BLOCK))[1]) for start in (0, 2 * BLOCK)]
    assert 0.4 < len(first_halves[0] & first_halves[1]) / BLOCK < 0.6


def test_a_lookup_does_not_depend_on_the_other_positions() -> None:
    stream = MixtureStream(stage(), SIZES, seed=4)
    positions = np.random.default_rng(0).integers(0, 10 * BLOCK, 300)
    source, chunk = stream.lookup(positions)
    for number in range(0, 300, 17):
        alone = stream.lookup(positions[number : number + 1])
        assert (alone[0][0], alone[1][0]) == (source[number], chunk[number])


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "t"}])
def test_seed_and_stage_change_the_order(other: dict[str, object]) -> None:
    base = MixtureStream(stage(), SIZES, seed=0).lookup(np.arange(200))
    changed = MixtureStream(
        stage(name=other.get("name", "s")),
        SIZES,
        seed=other.get("seed", 0),  # type: ignore[arg-type]
    ).lookup(np.arange(200))
    assert not np.array_equal(base[0], changed[0])


def test_mixture_by_tokens_weighs_slots() -> None:
    shares = draw_weights(stage(mixture={"a": 1.0, "b": 1.0, "c": 2.0}, mixture_by="tokens"), SIZES)
    slots_per_chunk = np.asarray([size.slots / size.chunks for size in SIZES])
    assert shares * slots_per_chunk / (shares * slots_per_chunk).sum() == pytest.approx([0.25, 0.25, 0.5])


def test_mixture_by_documents_ignores_how_documents_are_split() -> None:
    shares = draw_weights(stage(mixture={"a": 1.0, "b": 1.0, "c": 2.0}), SIZES)
    documents = shares * np.asarray([size.documents / size.chunks for size in SIZES])
    assert documents / documents.sum() == pytest.approx([0.25, 0.25, 0.5])


def test_epochs_draw_each_source_that_many_times() -> None:
    stream = MixtureStream(stage(epochs=2.0, mixture={"a": 1.0, "b": 0.5, "c": 1.25}), SIZES, seed=0)
    assert stream.length == 100 + 1400 + 22
    source, chunk = stream.lookup(np.arange(stream.length))
    times = [np.bincount(chunk[source == number]) for number in range(3)]
    assert times[0].tolist() == [2] * 50
    assert times[1].tolist() == [1] * 1400
    assert sorted(times[2].tolist()) == [2] * 5 + [3] * 4
    assert len(set(np.flatnonzero(source == 0) // 152)) == 10, "the stream is shuffled as a whole"


def test_epochs_that_draw_no_document_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"epochs 0\.0001 of these weights is less than one document"):
        MixtureStream(stage(epochs=0.0001, mixture={"a": 1.0, "b": 0.5, "c": 1.25}), SIZES, seed=0)


def test_too_many_sources_are_refused() -> None:
    names = {str(number): 1.0 for number in range(BLOCK + 1)}
    with pytest.raises(ConfigError, match="sources"):
        MixtureStream(stage(mixture=names), [SourceSize(1, 1, 1)] * len(names), seed=0)
