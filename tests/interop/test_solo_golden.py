"""Compares SOLO with stock Mistral on hand-built embeddings."""

import json
from pathlib import Path

import numpy as np
import pytest

import solo
from solo.inference.monolith import Monolith

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VISION, PATCH, ROW, END = 100, 101, 102, 104
VOCAB, WIDTH, VALUES = 120, 32, 32 * 32 * 3
WINDOW = 6


@pytest.fixture(scope="module")
def mistral():
    """A random Mistral with a sliding window of seven slots."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
        sliding_window=WINDOW + 1,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    return transformers.MistralForCausalLM(config)


@pytest.fixture(scope="module")
def projection() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.02, (WIDTH, VALUES)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(mistral, projection, tmp_path_factory) -> Path:
    """A repository like the published one: Mistral's tensors and one more, under Mistral's model_type."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("solo")
    tensors = {**mistral.state_dict(), "model.embed_vision_patch.weight": torch.tensor(projection)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = mistral.config.to_dict()
    config |= {"architectures": ["SoloForCausalLM"], "vision_patch_size": 32, "sliding_window": WINDOW}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> Monolith:
    return solo.load(folder)


def oracle(mistral, projection, ids, indices, patches, mask=None, labels=None):
    """Returns logits, loss, and gradients of embeddings and projection; text uses the zero row."""
    table = torch.tensor(projection, requires_grad=True)
    embedding = mistral.get_input_embeddings()
    vectors = torch.cat([torch.tensor(patches) @ table.T, torch.zeros(1, WIDTH)])
    embeds = embedding(torch.tensor(ids)) + vectors[torch.tensor(indices)]
    mistral.zero_grad()
    out = mistral(
        inputs_embeds=embeds,
        attention_mask=None if mask is None else torch.tensor(mask),
        position_ids=None if mask is None else (torch.tensor(mask).cumsum(-1) - 1).clamp(min=0),
        labels=None if labels is None else torch.tensor(labels),
        use_cache=False,
    )
    if labels is None:
        return out.logits.detach().numpy()
    out.loss.backward()
    return out.loss.item(), {
        "model.embed_vision_patch.weight": table.grad.numpy(),
        **{name: value.grad.numpy() for name, value in mistral.named_parameters()},
    }


def image(rows: int, columns: int, end: int, first: int = 0) -> tuple[list[int], list[int]]:
    """Returns ids and indices of an image's tokens, with separators between rows only."""
    ids, indices = [VISION], [-1]
    for row in range(rows):
        ids += [ROW] * (row > 0) + [PATCH] * columns
        indices += [-1] * (row > 0) + list(range(first + row * columns, first + (row + 1) * columns))
    return [*ids, end], [*indices, -1]


def sample(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    text = rng.integers(3, 99, 9).tolist()
    if kind == "one image":
        (ids, indices), count = image(2, 3, END), 6
    elif kind == "ends with <vision>":
        (ids, indices), count = image(2, 3, VISION), 6
    elif kind == "two images":
        first, second = image(2, 2, END), image(1, 3, END, first=4)
        ids, indices, count = first[0] + text[:2] + second[0], first[1] + [-1, -1] + second[1], 7
    else:
        ids, indices, count = [1], [-1], 0
    ids, indices = ids + text, indices + [-1] * len(text)
    return {
        "input_ids": np.array([ids]),
        "vision_patch_indices": np.array([indices]),
        "vision_patches": rng.normal(size=(count, VALUES)).astype(np.float32),
    }


KINDS = ["one image", "ends with <vision>", "two images", "text"]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_mistral(kind, model, mistral, projection) -> None:
    given = sample(kind)
    expected = oracle(mistral, projection, *(given[n] for n in ("input_ids", "vision_patch_indices", "vision_patches")))
    found = model.logits(model.batch(**given))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("kind", ["one image", "two images"])
def test_loss_and_gradients_are_those_of_mistral(kind, model, mistral, projection) -> None:
    given = sample(kind)
    labels = np.where(given["input_ids"] < VISION, given["input_ids"], -100)
    tensors = (given[name] for name in ("input_ids", "vision_patch_indices", "vision_patches"))
    loss, expected = oracle(mistral, projection, *tensors, labels=labels)
    ours, grads = model.loss_and_grads(model.batch(**given, labels=labels))
    assert ours == pytest.approx(loss, abs=1e-5)
    assert grads.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(grads[name], value, atol=1e-4 * max(np.abs(value).max(), 1e-3), err_msg=name)
    assert np.abs(expected["model.embed_tokens.weight"][PATCH]).max() > 0


def test_rows_padded_on_either_side(model, mistral, projection) -> None:
    """The patches of both rows are concatenated, and the indices of the second row continue the first's."""
    long, short = sample("two images"), sample("one image")
    size, missing = long["input_ids"].shape[1], long["input_ids"].shape[1] - short["input_ids"].shape[1]
    patches = np.concatenate([long["vision_patches"], short["vision_patches"]])
    shifted = np.where(short["vision_patch_indices"] >= 0, short["vision_patch_indices"] + 7, -1)
    for before, behind in ((missing, 0), (0, missing)):
        pad = ((0, 0), (before, behind))
        ids = np.concatenate([long["input_ids"], np.pad(short["input_ids"], pad, constant_values=2)])
        indices = np.concatenate([long["vision_patch_indices"], np.pad(shifted, pad, constant_values=-1)])
        mask = np.ones((2, size), int)
        mask[1] = np.pad(np.ones(size - missing, int), pad[1])
        expected = oracle(mistral, projection, ids, indices, patches, mask)
        batch = model.batch(input_ids=ids, vision_patch_indices=indices, vision_patches=patches, attention_mask=mask)
        real = mask.astype(bool)
        np.testing.assert_allclose(model.logits(batch)[real], expected[real], atol=1e-4)


def test_the_embedding_of_the_placeholder_is_added_to_patches(model) -> None:
    """Another placeholder id gives other logits; two different ids are refused."""
    given = sample("one image")
    other = np.where(given["input_ids"] == PATCH, 50, given["input_ids"])
    found, moved = model.logits(model.batch(**given)), model.logits(model.batch(**{**given, "input_ids": other}))
    assert np.abs(found - moved).max() > 1e-2
    other[0, 1] = 51
    with pytest.raises(ValueError, match="the id under every patch must be the same"):
        model.batch(**{**given, "input_ids": other})


def test_indices_out_of_range_are_refused(model) -> None:
    given = sample("one image")
    with pytest.raises(ValueError, match=r"go from -1 \(text\) to 5"):
        model.batch(**{**given, "vision_patch_indices": given["vision_patch_indices"] + 1})
    with pytest.raises(ValueError, match="which give their places"):
        model.batch(input_ids=given["input_ids"], vision_patches=given["vision_patches"])


def test_torch_tensors_of_any_precision_are_accepted(model) -> None:
    given = sample("one image")
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    tensors["vision_patches"] = tensors["vision_patches"].bfloat16().requires_grad_()
    rounded = {**given, "vision_patches": tensors["vision_patches"].detach().float().numpy()}
    np.testing.assert_array_equal(model.logits(model.batch(**tensors)), model.logits(model.batch(**rounded)))
