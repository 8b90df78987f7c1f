"""FLOPs of a step: useful ones and computed ones, against the compiler's own count and by hand."""

import jax
import pytest

from solo.config import MeshConfig, SafetyConfig
from solo.model.parameters import define
from solo.planning.flops import planned_flops
from solo.planning.program import abstract_batch
from solo.planning.rows import Document, Rows, stated_rows
from solo.sharding.mesh import make_mesh
from solo.training.step import make_stage
from tests.tiny import tiny_config

# Unrolled layers and dense attention: the compiler counts the body of a loop once.
MODEL = {
    "width": 256,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 1024,
    "experts": {"ffn": "modality"},
    "scan_layers": False,
    "attention_implementation": "dense",
    "vocab_size": 2048,
}


def _stage(**model):
    config = tiny_config(model={**MODEL, **model})
    update = {"patch_slots": 192, "text_slots": 64, "target_slots": 64, "batch_rows": 2}
    return config, config.stages[0].model_copy(update=update)


@pytest.mark.slow
def test_computed_flops_match_the_compilers_count() -> None:
    config, stage = _stage(remat="attention")
    rows, definition = stated_rows(stage), define(config, None)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    made = make_stage(definition, stage, 1, SafetyConfig(), mesh)
    lowered = made.step.lower(made.abstract, abstract_batch(config, 2, rows.shape, mesh))
    counted = lowered.compile().cost_analysis()["flops"]
    work = planned_flops(config, stage, definition, rows)
    # Norms, softmax and the optimizer are not counted by us, and are not little at this size.
    assert sum(work.computed.values()) == pytest.approx(counted, rel=0.05)


def test_recomputed_flops_are_not_useful() -> None:
    work = {}
    for remat in ("none", "dots", "attention"):
        config, stage = _stage(remat=remat)
        work[remat] = planned_flops(config, stage, define(config, None), stated_rows(stage))
    assert work["none"].useful == work["dots"].useful == work["attention"].useful
    assert sum(work["none"].computed.values()) == sum(work["dots"].computed.values())
    # The forward pass once more, of three times as much: forward, and the gradients of inputs and of weights.
    assert work["attention"].computed["qkv"] * 3 == work["none"].computed["qkv"] * 4
    assert work["none"].useful_share > work["attention"].useful_share


def test_logits_of_chunks_are_recomputed() -> None:
    config, stage = _stage()
    chunks = stage.model_copy(update={"loss": stage.loss.model_copy(update={"chunk_size": 64})})
    whole, cut = (planned_flops(config, each, define(config, None), stated_rows(each)) for each in (stage, chunks))
    assert cut.computed["head"] * 3 == whole.computed["head"] * 4
    assert cut.useful == whole.useful


def test_shorter_documents_need_fewer_tiles_and_fewer_pairs() -> None:
    config, stage = _stage(attention_implementation="blocks", attention_block=16)
    # Without delimiters, patches see no block of text.
    without = {"begin_token": None, "end_token": None, "row_token": None}
    config = config.model_copy(update={"image": config.image.model_copy(update=without)})
    definition, whole = define(config, None), stated_rows(stage)
    quarters = Rows(whole.shape, 1, ((Document(48, 16, 16),) * 4,), "four equal documents")
    one, four = (planned_flops(config, stage, definition, rows) for rows in (whole, quarters))
    assert one.useful["attention"] == pytest.approx(4 * four.useful["attention"], rel=0.02)
    assert one.computed["attention"] > 3 * four.computed["attention"]
    assert one.computed["ffn_text"] == four.computed["ffn_text"]
    # The last of sixteen query blocks sees all key blocks, the first one: eight and a half on average.
    assert one.visits == pytest.approx((16 + 1) / 2, abs=0.1)
