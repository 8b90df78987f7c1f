"""Held-out losses: every target once, whatever the rows look like."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest

from solo.config import ConfigError, MeshConfig
from solo.data.store.prepare import prepare
from solo.evaluation.losses import HeldOutLoss, HeldOutLosses, evaluation_set
from solo.inference.monolith import Monolith
from solo.sharding.mesh import make_mesh
from tests.tiny import tiny_config, tiny_monolith


@contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Collects what jax says that it compiles."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Compiling"):
                said.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def make(folder, tokenizer, **evaluation):
    tokenizer.save(folder)
    digits = {"reader": "digits", "options": {"split": "held_out"}, "limit": 5}
    config = tiny_config(
        data={
            "folder": str(folder / "data"),
            "sources": {"digits": digits},
            "tokenizer": {"path": str(folder / "tokenizer.model")},
        },
        evaluation={"losses": {"caption": {"source": "digits", "batch_rows": 2, **evaluation}}},
    )
    return config, prepare(config)


def conversation(record) -> list[dict]:
    def part(content):
        return content if isinstance(content, str) else {"type": "image", "image": content.decode("apply")}

    return [{"role": turn.role, "content": [part(content) for content in turn.content]} for turn in record.turns]


def measured(config, prepared, devices: int = 1, **sizes) -> HeldOutLoss:
    mesh = make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
    model = Monolith(config, prepared.tokenizer, tiny_monolith(prepared.tokenizer, config).parameters, mesh)
    losses = HeldOutLosses(config, prepared, model.definition, mesh)
    return losses.measure("caption", model.parameters)


def test_the_loss_is_the_mean_over_the_targets_of_all_records_each_alone(tmp_path, tiny_tokenizer) -> None:
    config, prepared = make(tmp_path, tiny_tokenizer)
    model = tiny_monolith(prepared.tokenizer, config)
    total, targets = 0.0, 0
    for number in range(5):
        batch = model.batch([conversation(prepared.sources["digits"].read(number))])
        count = int((batch.target_weights > 0).sum())
        total += model.loss_and_grads(batch)[0] * count
        targets += count
    found = measured(config, prepared)
    assert found.targets == targets
    assert found.loss == pytest.approx(total / targets, rel=1e-5)
    assert found.loss_by_context == {"with_image": pytest.approx(found.loss, rel=1e-6)}


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "context": 2}], ids=str)
def test_a_mesh_measures_the_same_documents_as_one_device(tmp_path, tiny_tokenizer, sizes) -> None:
    """Two rows in a batch, of which the mesh makes 8 or 4: those of the following batches, and empty ones."""
    for limits in ({}, {"batches": 1}):
        config, prepared = make(tmp_path, tiny_tokenizer, **limits)
        alone, spread = measured(config, prepared), measured(config, prepared, 8, **sizes)
        assert spread.targets == alone.targets
        assert spread.loss == pytest.approx(alone.loss, rel=1e-5)
        assert spread.loss_by_context == pytest.approx(alone.loss_by_context, rel=1e-5)


def test_nothing_is_compiled_again(tmp_path, tiny_tokenizer) -> None:
    config, prepared = make(tmp_path, tiny_tokenizer)
    model = tiny_monolith(prepared.tokenizer, config, devices=8)
    losses = HeldOutLosses(config, prepared, model.definition, model.mesh)
    first = losses.measure("caption", model.parameters)
    with jax.log_compiles(), count_compilations() as compiled:
        assert losses.measure("caption", model.parameters) == first
    assert compiled == []


def test_documents_that_cannot_be_read_are_counted(tmp_path, tiny_tokenizer, monkeypatch) -> None:
    config, prepared = make(tmp_path, tiny_tokenizer)
    monkeypatch.setattr(type(prepared.sources["digits"]), "whole", lambda self, number: 1 / (number != 2))
    with pytest.raises(ConfigError, match=r"'caption': 5 of 5 documents of source 'digits' could not be read"):
        measured(config, prepared)


def test_another_part_of_a_source_is_another_evaluation_set(tmp_path, tiny_tokenizer) -> None:
    config, prepared = make(tmp_path, tiny_tokenizer)
    part, _ = make(tmp_path, tiny_tokenizer, batches=1)
    assert evaluation_set(config, prepared) == evaluation_set(config.model_copy(update={"seed": 5}), prepared)
    assert evaluation_set(config, prepared) != evaluation_set(part, prepared)


def test_a_source_that_is_not_there_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"evaluation loss 'caption': no source 'digit'.*did you mean 'digits'"):
        tiny_config(evaluation={"losses": {"caption": {"source": "digit"}}})
