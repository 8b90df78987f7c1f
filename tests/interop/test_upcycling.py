"""Upcycling leaves the logits of text unchanged and draws what is new."""

import jax
import numpy as np
import pytest

from solo.batch import Batch
from solo.config import MeshConfig
from solo.interop.importing import import_repository
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS
from solo.interop.tensor_files import TensorReader
from solo.interop.upcycling import PreLayers
from solo.interop.weights import load_parameters, tensor_of
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh
from tests.interop.models import UPCYCLED, tiny, upcycled
from tests.interop.repositories import save


def read(folder):
    with TensorReader(folder) as reader:
        return {name: reader.read(name) for name in reader}


def parameters_of(folder, config, rows):
    definition = ModelDefinition(config.model, config.image, rows)
    return definition, load_parameters(folder, definition, make_mesh(MeshConfig(), jax.devices()[:1]))


def text_logits(definition, parameters, tokens):
    """Returns the logits of one row of text."""
    length = len(tokens)
    counts = np.arange(1, length + 1)
    zeros = np.zeros((1, length), np.int32)
    batch = Batch(
        patches=np.zeros((1, 0, definition.image.patch_size**2 * 3), np.uint8),
        patch_grid=np.zeros((1, 0, 2), np.int32),
        text=np.asarray([tokens], np.int32),
        positions=np.arange(length, dtype=np.int32)[None],
        attend=np.stack([zeros[0], zeros[0], zeros[0], counts], axis=-1)[None].astype(np.int32),
        target_slots=zeros,
        target_ids=zeros,
        target_weights=zeros.astype(np.float32),
        target_source=zeros,
    )

    def logits(parameters, batch):
        model = definition.bind(parameters)
        return model.logits(model.hidden(batch).hidden.text)

    return np.asarray(jax.jit(logits)(parameters, batch))[0, :, :100]


@pytest.mark.parametrize("new_tokens", ["mean", "normal"])
@pytest.mark.parametrize("name", UPCYCLED)
def test_upcycling(tmp_path, name, new_tokens):
    layout = tiny(name)[0]
    config = upcycled(name)
    tensors = save(tmp_path / "source", name)
    done = import_repository(tmp_path / "source", config, tmp_path / "out", new_tokens=new_tokens)
    definition, parameters = parameters_of(tmp_path / "out", config, 110)
    # Text: every tensor of the source is in the text path of the upcycled model.
    for rule in LAYOUTS[layout].tensors(definition):
        found = tensor_of(rule, parameters, np.float32)
        rows = 100 if rule.shape[0] == 110 else None
        assert (found[:rows] == tensors[rule.name]).all(), rule.name
    # Experts of patches are copies.
    experts = [path for path in parameters if "/patches/" in path]
    assert bool(experts) == ("modality" in str(config.model.experts))
    assert done.copied == definition.config.layers * len(experts)
    for path in experts:
        assert (np.asarray(parameters[path]) == np.asarray(parameters[path.replace("/patches/", "/text/")])).all()
    # Vocabulary: new rows are the mean, or drawn.
    for path, axis in (("text_embed", 0), ("head", 1)):
        if path in parameters:
            rows = np.moveaxis(np.asarray(parameters[path]), axis, 0)
            if new_tokens == "mean":
                mean = rows[:100].mean(axis=0)
                np.testing.assert_allclose(rows[100:110], np.tile(mean, (10, 1)), rtol=1e-5, atol=1e-6)
            else:
                assert 0.01 < rows[100:110].std() < 0.03
                assert len(np.unique(rows[100:110])) > 300
    # The patch embedding is drawn.
    patch_embed = {path: np.asarray(value) for path, value in parameters.items() if path.startswith("patch_embed")}
    assert done.drawn == len(patch_embed) > 0
    for path, value in patch_embed.items():
        if path.endswith("bias"):
            assert not value.any()
        elif path.endswith("scale"):
            assert (value == 1).all()
        else:
            assert abs(value.mean()) < 0.02
            assert value.size < 20 or 0.01 < value.std() < 0.03


@pytest.mark.parametrize("name", ["mistral", "internlm2"])
def test_the_logits_of_text_do_not_change(tmp_path, name):
    """Compares the source, converted without new rows, with the upcycled model: the old tokens' logits are equal."""
    config = upcycled(name)
    save(tmp_path / "source", name)
    shared = upcycled(name, vocab_size=100, experts={})
    import_repository(tmp_path / "source", shared, tmp_path / "plain")
    import_repository(tmp_path / "source", config, tmp_path / "upcycled", seed=3)
    tokens = [1, 5, 99, 42, 17, 2, 2, 63]
    before = text_logits(*parameters_of(tmp_path / "plain", shared, 100), tokens)
    after = text_logits(*parameters_of(tmp_path / "upcycled", config, 110), tokens)
    assert before.std() > 0.1
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("silent", [False, True])
def test_layers_in_front(tmp_path, silent):
    """Silent ones leave the logits of text as they are, bit for bit; the published ones do not."""
    save(tmp_path / "source", "qwen3")
    plain, grown = (upcycled("qwen3", vocab_size=100, experts={}, layers=layers) for layers in (2, 5))
    import_repository(tmp_path / "source", plain, tmp_path / "plain")
    done = import_repository(tmp_path / "source", grown, tmp_path / "grown", pre_layers=PreLayers(3, silent))
    before = parameters_of(tmp_path / "plain", plain, 100)
    after = parameters_of(tmp_path / "grown", grown, 100)
    for path, value in before[1].items():
        if path.startswith("layers/"):
            np.testing.assert_array_equal(after[1][path][3:], value, err_msg=path)
            new = np.asarray(after[1][path][:3])
            if path.endswith("scale"):
                assert (new == 1).all()
            elif silent and path in ("layers/out/shared/kernel", "layers/ffn/shared/down"):
                assert not new.any()
            else:
                assert abs(new.std() - 0.02) < 0.002
                assert len(np.unique(new)) > 0.99 * new.size, "no layer repeats another"
    tokens = [1, 5, 99, 42, 17, 2, 2, 63]
    assert np.array_equal(text_logits(*before, tokens), text_logits(*after, tokens)) == silent
    assert f"layers in front: {3 * 11} tensors, new" in done.summary()


def test_layers_in_front_must_be_asked_for(tmp_path):
    save(tmp_path / "source", "qwen3")
    for layers, pre_layers, message in [
        (3, 0, "model.layers: 2 there, 3 here; --pre-layers adds layers in front"),
        (3, 2, "model.layers: 2 there and 2 in front, 3 here"),
        (1, 0, "model.layers: 2 there, 1 here"),
    ]:
        config = upcycled("qwen3", layers=layers)
        with pytest.raises(LayoutError, match=f"{message}$"):
            import_repository(tmp_path / "source", config, tmp_path / "out", pre_layers=PreLayers(pre_layers))
    with pytest.raises(ValueError, match="neither may be negative"):
        import_repository(tmp_path / "source", upcycled("qwen3"), tmp_path / "out", pre_layers=PreLayers(-1))
    save(tmp_path / "monolith", "mono_internvl")
    with pytest.raises(LayoutError, match="1 layers in front: only a text model gets them"):
        import_repository(tmp_path / "monolith", tiny("mono_internvl")[1], tmp_path / "out", pre_layers=PreLayers(1))


def test_a_tied_head_becomes_one_of_its_own(tmp_path):
    save(tmp_path / "source", "qwen2 with a tied head")
    tied, own = (
        upcycled("qwen2 with a tied head", vocab_size=100, experts={}, tied_head=tied) for tied in (True, False)
    )
    import_repository(tmp_path / "source", tied, tmp_path / "tied")
    import_repository(tmp_path / "source", own, tmp_path / "own")
    before, after = parameters_of(tmp_path / "tied", tied, 100), parameters_of(tmp_path / "own", own, 100)
    np.testing.assert_array_equal(after[1]["head"][:, :100], np.asarray(after[1]["text_embed"])[:100].T)
    tokens = [1, 5, 99, 42, 17, 2, 2, 63]
    np.testing.assert_allclose(text_logits(*before, tokens), text_logits(*after, tokens), atol=1e-6)


def test_another_sliding_window_is_noted(tmp_path):
    """It is not refused: SOLO's is one slot longer than Mistral's."""
    save(tmp_path / "source", "mistral")
    config = upcycled("mistral")
    sequence = config.sequence.model_copy(update={"sliding_window": 18})
    done = import_repository(tmp_path / "source", config.model_copy(update={"sequence": sequence}), tmp_path / "out")
    assert done.notes == ["sequence.sliding_window: 17 there, 18 here"]
    assert done.summary()[-1] == "note: sequence.sliding_window: 17 there, 18 here"


def test_draws_are_a_function_of_the_seed(tmp_path):
    save(tmp_path / "source", "mistral")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        import_repository(tmp_path / "source", upcycled("mistral"), tmp_path / out, seed=seed, new_tokens="normal")
    a, b, c = (read(tmp_path / out) for out in "abc")
    assert all((a[name] == b[name]).all() for name in a)
    differing = {name for name in a if (a[name] != c[name]).any()}
    assert differing == {"model.patch_embed.weight", "model.text_embed.weight", "head.weight"}
    assert (a["model.text_embed.weight"][100:] != a["head.weight"][100:]).any()


def test_a_monolith_is_upcycled_to_experts_of_attention(tmp_path):
    """From Mono-InternVL 1 to 1.5."""
    _, config, definition = tiny("mono_internvl 1.5")
    image = config.image.model_copy(update={"patch_order": "rows"})
    config = config.model_copy(update={"image": image})
    save(tmp_path / "source", "mono_internvl")
    import_repository(tmp_path / "source", config, tmp_path / "out")
    _, parameters = parameters_of(tmp_path / "out", config, 100)
    for path in ("layers/qkv/{}/q", "layers/qkv/{}/v", "layers/out/{}/kernel"):
        assert (parameters[path.format("patches")] == parameters[path.format("text")]).all()
    assert (parameters["layers/ffn/patches/up"] != parameters["layers/ffn/text/up"]).any()
    assert definition.specs.keys() == parameters.keys()
