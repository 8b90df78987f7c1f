"""Compares NEO and NEO-unify with tensors that the published code computed for tiny models (tests/goldens/neo).

Repositories are read as published: both forms have the same config.json, but for a few keys, and no tokenizer.
"""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import solo
from solo.inference.hf_batch import HFBatch
from solo.inference.monolith import Monolith
from solo.interop.description import describe_repository
from solo.interop.export import export
from solo.interop.importing import import_repository
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS

GOLDENS = Path(__file__).parents[1] / "goldens" / "neo"
NAMES = {"neo_a": "neo", "neo_unify_a": "neo_unify"}
GENERATION = {"neo_a": 0, "neo_unify_a": 39}  # tensors that only generate images
NUMBER = 3  # of documents: two images amid text, text alone, an image first
SLOTS = 152  # one shape for all batches


@cache
def expected(name: str) -> dict[str, np.ndarray]:
    return load_file(GOLDENS / name / "expected.safetensors")


@cache
def model_of(name: str) -> Monolith:
    return solo.load(GOLDENS / name)


def tensors(name: str, row: str) -> dict[str, np.ndarray]:
    """Returns the inputs of a document."""
    keys = ("input_ids", "labels", "pixel_values", "image_grid_hw")
    return {key: expected(name)[f"{row}.{key}"] for key in keys if f"{row}.{key}" in expected(name)}


def together(name: str) -> HFBatch:
    """Returns all documents in one row."""
    rows = [tensors(name, f"row{number}") for number in range(NUMBER)]
    joined = {
        key: np.concatenate([row[key] for row in rows if key in row], axis=-1 if key == "input_ids" else 0)
        for key in ("input_ids", "labels", "pixel_values", "image_grid_hw")
    }
    bounds = np.cumsum([0, *(row["input_ids"].shape[1] for row in rows)])
    return model_of(name).batch(**joined, seq_boundaries=bounds, slot_multiple=SLOTS)


def check_gradients(name: str, found: dict[str, np.ndarray], prefix: str) -> None:
    wanted = {key.removeprefix(prefix): value for key, value in expected(name).items() if key.startswith(prefix)}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=2e-5 * np.abs(value).max(), rtol=0, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_a_document_has_the_published_logits_and_loss(name):
    model = model_of(name)
    for number in range(NUMBER):
        batch = model.batch(**tensors(name, f"row{number}"), slot_multiple=SLOTS)
        published = {key: expected(name)[f"row{number}.{key}"] for key in ("thw", "logits", "loss")}
        np.testing.assert_array_equal(batch.in_input_order(batch.batch.positions)[0], published["thw"])
        np.testing.assert_allclose(model.logits(batch), published["logits"], atol=3e-5)
        loss, _ = model.loss_and_grads(batch)
        assert loss == pytest.approx(float(published["loss"][0]), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_documents_in_a_row_have_the_published_loss_and_gradients(name):
    """Every token with the same weight."""
    loss, grads = model_of(name).loss_and_grads(together(name))
    assert loss == pytest.approx(float(expected(name)["loss_token"][0]), abs=1e-5)
    check_gradients(name, grads, "grad_token.")


def test_the_published_weighting():
    """1 / sqrt(n) for each of the n supervised tokens of a document, as `loss.average: document_root` has."""
    batch = together("neo_a")
    packed = {key: expected("neo_a")[f"packed.{key}"] for key in ("logits", "loss_weight", "labels")}
    np.testing.assert_allclose(model_of("neo_a").logits(batch), packed["logits"], atol=3e-5)
    weights = packed["loss_weight"][0][1:][packed["labels"][1:] >= 0]
    batch.batch.target_weights[0, : len(weights)] = weights
    loss, grads = model_of("neo_a").loss_and_grads(batch)
    assert loss == pytest.approx(float(expected("neo_a")["loss"][0]), abs=1e-5)
    check_gradients("neo_a", grads, "grad.")


@pytest.mark.parametrize("name", NAMES)
def test_greedy_continuations(name):
    """As the published evaluation code continues with its cache."""
    model, published = model_of(name), expected(name)
    for number in range(NUMBER):
        given = tensors(name, f"row{number}")
        images = {key: given[key] for key in ("pixel_values", "image_grid_hw") if key in given}
        ids = published[f"generate{number}.prompt_ids"]
        for step, wanted in enumerate(published[f"generate{number}.logits"]):
            batch = model.batch(input_ids=ids, **images, slot_multiple=SLOTS)
            logits = model.logits(batch)[0, -1]
            np.testing.assert_allclose(logits, wanted, atol=3e-5)
            assert logits.argmax() == published[f"generate{number}.new_ids"][0, step]
            ids = np.append(ids, [[logits.argmax()]], axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_import_and_export_keep_every_bit(name, tmp_path):
    """Published -> ours -> published -> ours; the tensors that generate images are left out and counted."""
    config = describe_repository(GOLDENS / name)[1]
    done = import_repository(GOLDENS / name, config, tmp_path / "ours")
    assert (done.layout, done.left_out) == (NAMES[name], GENERATION[name])
    left_out = f"left out: {done.left_out} tensors that only generate images"
    assert (left_out in done.summary()) == bool(done.left_out)
    export(tmp_path / "ours", tmp_path / "published", NAMES[name])
    before, after = (load_file(folder / "model.safetensors") for folder in (GOLDENS / name, tmp_path / "published"))
    assert len(before) == len(after) + done.left_out
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    import_repository(tmp_path / "published", describe_repository(tmp_path / "published")[1], tmp_path / "again")
    first, second = ((tmp_path / each / "model.safetensors").read_bytes() for each in ("ours", "again"))
    assert first == second
    batch = tensors(name, "row0") | {"slot_multiple": SLOTS}
    logits = [model.logits(model.batch(**batch)) for model in (model_of(name), solo.load(tmp_path / "again"))]
    np.testing.assert_array_equal(*logits)


def test_a_form_is_not_written_as_the_other():
    configs = {layout: describe_repository(GOLDENS / name)[1] for name, layout in NAMES.items()}
    for layout, other in (("neo", "neo_unify"), ("neo_unify", "neo")):
        assert LAYOUTS[layout].refusal(configs[layout]) is None
        assert f"model.head_parts is not that of the {layout} layout: time" in str(
            LAYOUTS[layout].refusal(configs[other])
        )


def test_what_is_left_out_is_told(caplog):
    solo.load(GOLDENS / "neo_a")
    assert not caplog.messages
    solo.load(GOLDENS / "neo_unify_a")
    assert [message.split(": ")[1] for message in caplog.messages] == [
        "39 tensors only generate images and are left out"
    ]


def changed(tmp_path: Path, name: str, change=lambda config: None, without: tuple[str, ...] = ()) -> Path:
    """Returns a copy of a repository with another config.json, or without some tensors."""
    folder = tmp_path / "changed"
    shutil.copytree(GOLDENS / name, folder, ignore=shutil.ignore_patterns("expected*"))
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    if without:
        kept = {key: value for key, value in load_file(folder / "model.safetensors").items() if key not in without}
        save_file(kept, folder / "model.safetensors")
    return folder


def test_lists_of_one_element_and_a_mislabelled_config(tmp_path):
    """The published code nests them at every save, and a released config.json names another model type."""

    def change(config):
        config["vision_config"] |= {"llm_hidden_size": [[64]], "downsample_ratio": [0.5], "patch_size": [[[16]]]}
        config["downsample_ratio"] = [[0.5]]
        config["llm_config"]["layer_types"] = ["full_attention"] * 32
        config["model_type"] = "internvl_chat"

    layout, config, _ = describe_repository(changed(tmp_path, "neo_a", change))
    assert (layout.name, config) == ("neo", describe_repository(GOLDENS / "neo_a")[1])


def test_a_missing_head_is_the_embedding(tmp_path):
    """The published code clones it. A config with a head of its own gets a copy to train."""
    folder = changed(tmp_path, "neo_a", without=("language_model.lm_head.weight",))
    config = describe_repository(folder)[1]
    assert config.model.tied_head
    own = config.model_copy(update={"model": config.model.model_copy(update={"tied_head": False})})
    import_repository(folder, own, tmp_path / "own")
    head, embedding = (
        load_file(tmp_path / "own" / "model.safetensors")[f"{key}.weight"] for key in ("head", "model.text_embed")
    )
    np.testing.assert_array_equal(head, embedding)
    assert not describe_repository(GOLDENS / "neo_a")[1].model.tied_head


@pytest.mark.parametrize(
    ("change", "without", "message"),
    [
        (lambda config: config["llm_config"].update(num_experts=128), (), "mixture of experts"),
        (lambda config: config["llm_config"].update(use_sliding_window=True), (), "use_sliding_window"),
        (lambda config: config["vision_config"].pop("patch_size"), (), "lacks patch_size"),
        (None, "q_proj_hw", "neither self_attn.q_proj_hw"),
    ],
)
def test_what_is_refused(tmp_path, change, without, message):
    names = tuple(key for key in load_file(GOLDENS / "neo_a" / "model.safetensors") if without and without in key)
    folder = changed(tmp_path, "neo_a", change or (lambda config: None), names)
    with pytest.raises(LayoutError, match=message):
        describe_repository(folder)
