"""Gemma 4's unified model: a tiny random model of transformers' own class against ours, from the same repository."""

import importlib
import importlib.machinery
import json
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image as PillowImage
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.24")

import solo  # noqa: E402
from solo.config import MeshConfig, parse_config  # noqa: E402
from solo.data.images.geometry import resized  # noqa: E402
from solo.inference.monolith import Monolith  # noqa: E402
from solo.interop.description import describe_repository  # noqa: E402
from solo.interop.importing import import_repository  # noqa: E402
from solo.interop.layout import LayoutError  # noqa: E402
from solo.interop.layouts import LAYOUTS  # noqa: E402
from solo.interop.layouts.gemma4_unified import official_masks  # noqa: E402
from solo.interop.remote.image_processing_solo import SoloMonolithImageProcessor  # noqa: E402
from solo.loading import load_repository  # noqa: E402
from solo.model.generate import decode_token  # noqa: E402
from solo.sharding.mesh import make_mesh, place_rows  # noqa: E402

VOCAB, IMAGE, BEGIN, END = 96, 90, 91, 92
# The pattern of three is repeated twice, and one layer is left over.
TYPES = ["full_attention", *["sliding_attention", "sliding_attention", "full_attention"] * 2]
WINDOW, SIDE = 6, 4
MEDIA = [IMAGE, 93, 94]  # transformers reads these as padding


def stock_model():
    settings = transformers.Gemma4UnifiedConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": len(TYPES),
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": WINDOW,
            "layer_types": list(TYPES),
            "final_logit_softcapping": 3.0,
            "eos_token_id": 95,
        },
        vision_config={
            "patch_size": SIDE // 2,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 24,
            "output_proj_dims": 24,
            "mm_posemb_size": 12,
        },
        audio_config={"audio_embed_dim": 8},
        image_token_id=IMAGE,
        boi_token_id=BEGIN,
        eoi_token_id=END,
        video_token_id=93,
        audio_token_id=94,
    )
    settings._attn_implementation = "eager"
    model = transformers.Gemma4UnifiedForConditionalGeneration(settings).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_scale = name.endswith("weight") and ("norm" in name or "_ln" in name)
            value.copy_(torch.randn_like(value) * 0.1 + is_scale)
        for number, layer in enumerate(model.model.language_model.layers):
            layer.layer_scalar.fill_(0.7 + 0.1 * number)
    return model


@pytest.fixture(scope="module")
def stock():
    return stock_model()


@pytest.fixture(scope="module")
def folder(stock, tmp_path_factory):
    found = tmp_path_factory.mktemp("gemma")
    stock.save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def ours(folder) -> Monolith:
    return load_repository(folder, make_mesh(MeshConfig(), jax.devices()[:1]))


def example(*parts, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a document of text runs (lengths) and images (rows, columns), in the stock model's form."""
    rng = np.random.default_rng(seed)
    ids, sizes = [], [part for part in parts if isinstance(part, tuple)]
    for part in parts:
        text = isinstance(part, int)
        ids += list(rng.integers(3, 80, part)) if text else [BEGIN, *[IMAGE] * (part[0] * part[1]), END]
    places = np.full((len(sizes), 14, 2), -1)
    for number, (rows, columns) in enumerate(sizes):
        places[number, : rows * columns] = [(x, y) for y in range(rows) for x in range(columns)]
    tokens = np.asarray([ids])
    return {
        "input_ids": tokens,
        "mm_token_type_ids": (tokens == IMAGE).astype(int),
        "pixel_values": rng.random((len(sizes), 14, SIDE**2 * 3)).astype(np.float32),
        "image_position_ids": places,
    }


# An image of 12 patches is longer than the window of 6.
DOCUMENT = example(5, (2, 4), 6, (4, 3), 4)


def stock_logits(stock, given, **masks):
    inputs = {key: torch.from_numpy(value) for key, value in given.items()}
    if masks:
        del inputs["mm_token_type_ids"]
    return stock(**inputs, **masks).logits


def test_logits_and_gradients(stock, ours) -> None:
    labels = DOCUMENT["input_ids"].copy()
    labels[(labels == IMAGE) | (np.arange(labels.shape[1]) < 3)] = -100
    expected = stock_logits(stock, DOCUMENT)
    loss = torch.nn.functional.cross_entropy(expected[0, :-1], torch.from_numpy(labels[0, 1:]), ignore_index=-100)
    stock.zero_grad()
    loss.backward()
    batch = ours.batch(**DOCUMENT, labels=labels)
    wanted = expected.detach().numpy()
    assert wanted.std() > 0.5
    np.testing.assert_allclose(ours.logits(batch)[..., :VOCAB], wanted, atol=1e-4)
    found, gradients = ours.loss_and_grads(batch)
    assert found == pytest.approx(loss.item(), abs=1e-5)
    theirs = {LAYOUTS["gemma4_unified"].canonical(name): value.grad for name, value in stock.named_parameters()}
    assert gradients.keys() == {
        *(name for name in theirs if "audio" not in name and name != "lm_head.weight"),
        *(f"model.language_model.layers.{number}.layer_scalar" for number in range(len(TYPES))),
    }
    for name, value in gradients.items():
        if name.endswith("layer_scalar"):
            assert not value.any()
            continue
        gradient = theirs[name].numpy()
        np.testing.assert_allclose(value, gradient, atol=5e-5 * max(np.abs(gradient).max(), 1e-2), err_msg=name)


def test_masks_of_google_deepmind(stock, folder) -> None:
    """Images attend to all of themselves in sliding layers only, within the window, as vLLM computes it too."""
    length = DOCUMENT["input_ids"].shape[1]
    masks = stock.create_masks_for_generate(
        stock.config,
        inputs_embeds=torch.zeros(1, length, 32),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        cache=None,
        position_ids=torch.arange(length)[None],
        mm_token_type_ids=torch.from_numpy(DOCUMENT["mm_token_type_ids"]),
    )
    with torch.no_grad():
        expected = stock_logits(stock, DOCUMENT, attention_mask=masks).numpy()
        others = stock_logits(stock, DOCUMENT).numpy()
    assert np.abs(expected - others).max() > 0.1
    model = load_repository(folder, make_mesh(MeshConfig(), jax.devices()[:1]))
    own = model.config.sequence.model_copy(update={"layer_masks": official_masks(WINDOW)[::-1]})
    model.config = model.config.model_copy(update={"sequence": own})
    np.testing.assert_allclose(model.logits(model.batch(**DOCUMENT))[..., :VOCAB], expected, atol=1e-4)


def test_greedy_generation_with_a_cache(stock, ours) -> None:
    """Prompts are read at once, and the window and both sizes of caches are crossed while decoding."""
    given = {key: torch.from_numpy(value) for key, value in DOCUMENT.items()}
    length = DOCUMENT["input_ids"].shape[1]
    with torch.no_grad():
        expected = stock.generate(**given, max_new_tokens=9, do_sample=False, suppress_tokens=MEDIA)[
            0, length:
        ].tolist()
    batch = ours.batch(**DOCUMENT).batch
    patches = int((DOCUMENT["input_ids"] == IMAGE).sum())
    chunk = batch._replace(text=batch.text[:, : length - patches])
    rows = np.r_[: batch.patches.shape[1], batch.patches.shape[1] : batch.patches.shape[1] + length - patches]
    chunk = chunk._replace(positions=batch.positions[:, rows], attend=batch.attend[:, rows])
    cache = ours.empty_cache(1, chunk.patches.shape[1], 40)
    cache, logits = ours.prefill(cache, chunk, np.array([[patches, length - patches]], np.int32))
    found = []
    for _ in expected:
        row = np.asarray(logits)[0, :VOCAB].copy()
        row[MEDIA] = -np.inf
        found.append(int(np.argmax(row)))
        cache, logits = decode_token(
            ours.definition,
            ours.generation.decode,
            ours.parameters,
            cache,
            np.array(found[-1:], np.int32),
            ours.layers,
            sliding_window=ours.config.sequence.windows,
        )
    assert found == expected
    assert len(set(expected)) > 2


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(folder, ours) -> None:
    """The forward pass, then a prefill and a decoding step with stacked caches of each type."""
    many = load_repository(folder, make_mesh(MeshConfig(data=2, fsdp=2, context=2)))
    given = ours.batch(**DOCUMENT, slot_multiple=16)
    batch, expected = many.place(given.batch), ours.logits(given)[0]
    bound = many.definition.bind(many.parameters)
    forward = jax.jit(lambda batch: bound.logits(bound.hidden(batch, many.placement).hidden.join()))
    found = given.in_input_order(np.asarray(forward(batch))[:1])[0]
    np.testing.assert_allclose(found[:, :VOCAB], expected[:, :VOCAB], atol=5e-5)
    rows, length = len(batch.text), DOCUMENT["input_ids"].shape[1]
    patches = int((DOCUMENT["input_ids"] == IMAGE).sum())
    # All but the last token are read at once, and the last one is decoded.
    counts = np.zeros((rows, 2), np.int32)
    counts[0] = patches, length - patches - 1
    cache = many.empty_cache(rows, batch.patches.shape[1], 48)
    cache, logits = many.prefill(cache, batch, place_rows(counts, many.mesh))
    np.testing.assert_allclose(np.asarray(logits)[0, :VOCAB], expected[-2, :VOCAB], atol=5e-5)
    token = place_rows(np.full(rows, DOCUMENT["input_ids"][0, -1], np.int32), many.mesh)
    _, logits = decode_token(
        many.definition,
        many.generation.decode,
        many.parameters,
        cache,
        token,
        sliding_window=many.config.sequence.windows,
    )
    np.testing.assert_allclose(np.asarray(logits)[0, :VOCAB], expected[-1, :VOCAB], atol=5e-5)


def test_import_export_and_import_keep_every_bit(folder, stock, tmp_path) -> None:
    layout = LAYOUTS["gemma4_unified"]
    written = json.loads((folder / "config.json").read_text())
    config = parse_config({"name": "gemma", **json.loads(json.dumps(layout.config_from(written)))})
    done = import_repository(folder, config, tmp_path / "native")
    assert "left out: 1 tensors that only read sound" in done.summary()
    native = solo.load(tmp_path / "native")
    rules = layout.tensors(native.definition)
    theirs = load_file(folder / "model.safetensors")
    assert {rule.name for rule in rules} == {name for name in theirs if "audio" not in name}
    for rule in rules:
        values = [np.asarray(native.parameters[part.path]) for part in rule.slices]
        parts = zip(rule.slices, values, strict=True)
        again = rule.join([value if part.layer is None else value[part.layer] for part, value in parts])
        np.testing.assert_array_equal(again, theirs[rule.name], err_msg=rule.name)
    exported = transformers.Gemma4UnifiedConfig(**layout.config_json(config, VOCAB) | {"image_token_id": IMAGE})
    exported._attn_implementation = "eager"
    model = transformers.Gemma4UnifiedForConditionalGeneration(exported).eval()
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not missing
    assert unexpected == ["model.embed_audio.embedding_projection.weight"]
    with torch.no_grad():
        torch.testing.assert_close(stock_logits(model, DOCUMENT), stock_logits(stock, DOCUMENT))


@pytest.fixture
def processor(monkeypatch):
    """The image processor of transformers. torchvision, which it imports for one function, is replaced by torch's."""

    def resize(image, size, interpolation, antialias):
        return torch.nn.functional.interpolate(image[None], size=size, mode="bicubic", antialias=antialias)[0]

    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["torchvision.transforms.v2"].functional = types.SimpleNamespace(InterpolationMode=None, resize=resize)
    name = "transformers.models.gemma4_unified.image_processing_gemma4_unified"
    found = importlib.import_module(name).Gemma4UnifiedImageProcessor
    monkeypatch.delitem(sys.modules, name)
    return found.__new__(found)


def test_patches_are_nearly_those_of_the_processor(processor) -> None:
    """The same sizes, order and places. torchvision's filter differs from Pillow's by at most 2 of 255."""
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (high, wide, 3)).astype(np.uint8) for high, wide in ((120, 200), (400, 90), (33, 34))
    ]
    settings = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False}
    theirs = processor._preprocess(
        [torch.from_numpy(image).permute(2, 0, 1) for image in images],
        **settings,
        resample=None,
        image_mean=None,
        image_std=None,
        return_tensors="np",
        patch_size=16,
        max_soft_tokens=70,
        pooling_kernel_size=3,
    )
    layout = LAYOUTS["gemma4_unified"]
    section = layout.config_from(CONFIG | {"vision_config": {"num_soft_tokens": 70}})["image"]
    config = parse_config({"name": "x", "image": section, "model": MODEL})
    exported = SoloMonolithImageProcessor(config.image.model_dump(mode="json"), form=layout.images_form)
    ours = exported.preprocess([PillowImage.fromarray(image) for image in images])
    slots = ours["pixel_values"].shape[1]
    np.testing.assert_array_equal(ours["image_position_ids"], theirs["image_position_ids"][:, :slots])
    assert (theirs["image_position_ids"][:, slots:] == -1).all()
    difference = np.abs(ours["pixel_values"] - theirs["pixel_values"][:, :slots]) * 255
    assert difference.max() < 2.01
    assert (difference > 0.01).mean() < 0.01


@pytest.mark.parametrize("tokens", [70, 280, 1120])
def test_sizes_are_those_of_the_processor(tokens) -> None:
    from transformers.models.gemma4_unified.processing_gemma4_unified import get_aspect_ratio_preserving_size

    sides = np.unique(np.geomspace(1, 6000, 60).astype(int))
    width, height = (side.ravel() for side in np.meshgrid(sides, sides))
    image = LAYOUTS["gemma4_unified"].config_from(CONFIG | {"vision_config": {"num_soft_tokens": tokens}})["image"]
    section = parse_config({"name": "x", "image": image, "model": MODEL}).image
    wide, high = resized(width, height, section)
    expected = [
        get_aspect_ratio_preserving_size(int(h), int(w), patch_size=16, max_patches=tokens * 9, pooling_kernel_size=3)
        for w, h in zip(width, height, strict=True)
    ]
    np.testing.assert_array_equal(np.stack([high, wide], axis=1), expected)


@pytest.mark.parametrize("nested", [False, True])
def test_the_image_processor_states_the_size_of_images(folder, tmp_path, nested) -> None:
    """transformers ignores the number in config.json. Its processors state theirs in one of two files."""
    from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor

    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert describe_repository(tmp_path)[1].image.max_pixels == 280 * 4**2
    Gemma4UnifiedImageProcessor(max_soft_tokens=1120).save_pretrained(tmp_path)
    if nested:
        settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").unlink()
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    image = describe_repository(tmp_path)[1].image
    assert image.min_pixels == image.max_pixels == 1120 * 4**2
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text('{"image_processor": {"max_soft_tokens": "many"}, "max_soft_tokens": "many"}')
    with pytest.raises(ValueError, match="max_soft_tokens: many; expected a positive integer"):
        describe_repository(tmp_path)


CONFIG = {"model_type": "gemma4_unified", "text_config": stock_model().config.text_config.to_dict()}
MODEL = {"width": 8, "layers": 1, "heads": 1, "kv_heads": 1, "ffn_width": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"num_kv_shared_layers": 2}, "num_kv_shared_layers: 2"),
        ({"use_double_wide_mlp": True}, "use_double_wide_mlp: True"),
        ({"use_bidirectional_attention": "all"}, "solo's text is causal"),
        ({"hidden_activation": "silu"}, "hidden_activation: silu"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type: yarn"),
        ({"sliding_window": None}, "sliding_window: null"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters has rope_theta; expected one entry each"),
    ],
)
def test_features_that_ours_lacks_are_named(text, message) -> None:
    changed = {**CONFIG, "vision_config": {}, "text_config": {**CONFIG["text_config"], **text}}
    with pytest.raises(ValueError, match=message):
        LAYOUTS["gemma4_unified"].config_from(changed)


def test_a_tied_head_may_be_stored(folder, ours, tmp_path) -> None:
    """As training code that does not know of the tie writes it. Another head than the embedding is refused."""
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.language_model.embed_tokens.weight"]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for name, head in (("same", embedding), ("other", embedding + 1)):
        (tmp_path / name).mkdir()
        save_file({**tensors, "lm_head.weight": head}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text((folder / "config.json").read_text())
    found = load_repository(tmp_path / "same", mesh).parameters
    assert found.keys() == ours.parameters.keys()
    np.testing.assert_array_equal(found["text_embed"], ours.parameters["text_embed"])
    with pytest.raises(LayoutError, match=r"lm_head\.weight"):
        load_repository(tmp_path / "other", mesh)
