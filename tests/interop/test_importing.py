"""Conversion loses nothing; growing leaves what the model says of text as it was."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from solo.batch import Batch
from solo.cli import main
from solo.config import MeshConfig, dump_config, parse_config
from solo.data.tokenizer import open_tokenizer
from solo.interop.importing import import_repository
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS
from solo.interop.layouts.native import NATIVE
from solo.interop.tensor_reader import TensorFileError, TensorReader
from solo.interop.weights import load_parameters, read_config_json, tensor_of
from solo.model.parameters import ModelDefinition
from solo.sharding.mesh import make_mesh
from tests.data.vocabularies import byte_level_json, foreign_model, write_repository
from tests.interop.models import CONV, EVE, GRID, MODALITY, TEXT, TILES, TINY, tiny
from tests.interop.repositories import save

MONOLITHS = tuple(name for name in TINY if LAYOUTS[tiny(name)[0]].has_images)
# Text model: what it grows into.
GROWN = {
    "mistral": {
        "model": {"patch_embed": {"token_id": 101}},
        "image": {"patch_size": 8, "max_side": 64, "placeholder_token": "<vpatch>"},
        "sequence": {"window": 16},
    },
    "llama": {"model": {"rope_scaling": dict(tiny("llama")[1].model.rope_scaling), "experts": {"norms": "modality"}}},
    "qwen2 with a tied head": {
        "model": {"bias": "qkv", "tied_head": True, "patch_embed": CONV, "experts": MODALITY},
        "image": EVE,
    },
    "qwen3": {"model": {"qk_norm": "rms", "head_dim": 16, "experts": {"qkv": "modality"}}},
    "internlm2": {
        "model": {
            "patch_embed": GRID,
            "experts": {"ffn": "modality"},
            "rope_scaling": dict(tiny("internlm2")[1].model.rope_scaling),
        },
        "image": TILES,
    },
}


def grown(name, vocab_size=110, **model):
    sections = GROWN[name]
    return parse_config(
        {"name": "grown", **sections, "model": {**TEXT, "vocab_size": vocab_size, **sections["model"], **model}}
    )


def read(folder):
    with TensorReader(folder) as reader:
        return {name: reader.read(name) for name in reader}


def parameters_of(folder, config, rows):
    definition = ModelDefinition(config.model, config.image, rows)
    return definition, load_parameters(folder, definition, make_mesh(MeshConfig(), jax.devices()[:1]))


def text_logits(definition, parameters, tokens):
    """Of one row of text."""
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

    return np.asarray(jax.jit(logits)(parameters, batch))[0]


@pytest.mark.parametrize("name", MONOLITHS)
def test_import_and_export_is_the_identity_bit_for_bit(tmp_path, name):
    layout, config, definition = tiny(name)
    tensors = save(tmp_path / "source", name, ml_dtypes.bfloat16)
    done = import_repository(tmp_path / "source", config, tmp_path / "out", max_shard_bytes=30_000)
    assert (done.layout, done.copied, done.drawn, done.rows) == (layout, 0, 0, (100, 100))
    stored = read(tmp_path / "out")
    ours = {rule.parts[0]: rule.split(stored[rule.name])[0] for rule in NATIVE.tensors(definition)}
    for rule in LAYOUTS[layout].tensors(definition):
        again = rule.join([ours[part] for part in rule.parts])
        assert again.dtype == ml_dtypes.bfloat16
        assert again.tobytes() == tensors[rule.name].tobytes(), rule.name
    # Once more, out of our own form.
    import_repository(tmp_path / "out", config, tmp_path / "twice")
    assert {key: values.tobytes() for key, values in read(tmp_path / "twice").items()} == {
        key: values.tobytes() for key, values in stored.items()
    }
    written = read_config_json(tmp_path / "out")
    assert written["dtype"] == "bfloat16"
    assert NATIVE.config_from(written)["model"] == json.loads(config.model.model_dump_json())


@pytest.mark.parametrize("new_tokens", ["mean", "normal"])
@pytest.mark.parametrize("name", GROWN)
def test_growing(tmp_path, name, new_tokens):
    layout = tiny(name)[0]
    config = grown(name)
    tensors = save(tmp_path / "source", name)
    done = import_repository(tmp_path / "source", config, tmp_path / "out", new_tokens=new_tokens)
    definition, parameters = parameters_of(tmp_path / "out", config, 110)
    # Text: every tensor of the source is in the text's part of the grown model.
    for rule in LAYOUTS[layout].tensors(definition):
        found = tensor_of(rule, parameters, np.float32)
        rows = 100 if rule.shape[0] == 110 else None
        assert (found[:rows] == tensors[rule.name]).all(), rule.name
    # Experts: those of patches are copies.
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
    # The embedder of patches: drawn, without a pattern.
    embedder = {path: np.asarray(value) for path, value in parameters.items() if path.startswith("patch_embed")}
    assert done.drawn == len(embedder) > 0
    for path, value in embedder.items():
        if path.endswith("bias"):
            assert not value.any()
        elif path.endswith("scale"):
            assert (value == 1).all()
        else:
            assert abs(value.mean()) < 0.02
            assert value.size < 20 or 0.01 < value.std() < 0.03


@pytest.mark.parametrize("name", ["mistral", "internlm2"])
def test_a_grown_model_says_of_text_what_it_said(tmp_path, name):
    """The source, converted without new rows; and grown. Not one bit of the old tokens' logits differs."""
    config = grown(name)
    save(tmp_path / "source", name)
    shared = grown(name, vocab_size=100, experts={})
    import_repository(tmp_path / "source", shared, tmp_path / "plain")
    import_repository(tmp_path / "source", config, tmp_path / "grown", seed=3)
    tokens = [1, 5, 99, 42, 17, 2, 2, 63]
    before = text_logits(*parameters_of(tmp_path / "plain", shared, 100), tokens)
    after = text_logits(*parameters_of(tmp_path / "grown", config, 110), tokens)
    assert before.std() > 0.1
    np.testing.assert_array_equal(after[:, :100], before[:, :100])


def test_what_is_drawn_is_a_function_of_the_seed(tmp_path):
    save(tmp_path / "source", "mistral")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        import_repository(tmp_path / "source", grown("mistral"), tmp_path / out, seed=seed, new_tokens="normal")
    a, b, c = (read(tmp_path / out) for out in "abc")
    assert all((a[name] == b[name]).all() for name in a)
    differing = {name for name in a if (a[name] != c[name]).any()}
    assert differing == {"model.patch_embed.weight", "model.text_embed.weight", "head.weight"}
    assert (a["model.text_embed.weight"][100:] != a["head.weight"][100:]).any()


def test_experts_of_attention_grow_out_of_a_monolith(tmp_path):
    """Mono-InternVL 1 to 1.5."""
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


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"width": 64}, ["model.width: 32 there, 64 here", "model.head_dim: 8 there, 16 here"]),
        ({"layers": 3, "ffn_width": 49}, ["model.layers: 2 there, 3 here", "model.ffn_width: 48 there, 49 here"]),
        ({"rope_theta": 5.0}, ["model.rope_theta: 10000.0 there, 5.0 here"]),
        ({"bias": "qkv"}, ["model.bias: none there, qkv here"]),
        ({"vocab_size": 99}, ["model.vocab_size: 100 there, 99 here; rows can be added, not taken away"]),
        ({"experts": {"ffn": "learned"}}, ["model.experts.ffn: shared there, learned here; a learned mixture is not"]),
    ],
)
def test_a_source_of_another_model_is_refused_key_by_key(tmp_path, change, lines):
    save(tmp_path / "source", "mistral")
    with pytest.raises(LayoutError, match=r"\(mistral\) is not of the model that 'grown' describes") as error:
        import_repository(tmp_path / "source", grown("mistral", **change), tmp_path / "out")
    for line in lines:
        assert line in str(error.value)
    assert len(str(error.value).splitlines()) == len(lines) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_monolith_of_another_model_is_refused_key_by_key(tmp_path):
    _, config, _ = tiny("mono_internvl")
    save(tmp_path / "source", "mono_internvl")
    image = config.image.model_copy(update={"patch_order": "columns", "mean": (0.5, 0.5, 0.5)})
    experts = config.model.experts.model_copy(update={"ffn": "shared"})
    model = config.model.model_copy(update={"experts": experts})
    with pytest.raises(LayoutError) as error:
        import_repository(
            tmp_path / "source", config.model_copy(update={"image": image, "model": model}), tmp_path / "out"
        )
    for line in (
        "image.patch_order: rows there, columns here",
        "image.mean:",
        "model.experts.ffn: modality there, shared",
    ):
        assert line in str(error.value)


def test_a_solo_needs_to_know_which_row_stands_under_patches(tmp_path):
    _, config, _ = tiny("solo")
    save(tmp_path / "source", "solo")
    stated = read_config_json(tmp_path / "source")
    del stated["vision_patch_token_id"]  # as the published one
    (tmp_path / "source" / "config.json").write_text(json.dumps(stated))
    import_repository(tmp_path / "source", config, tmp_path / "good")
    embed = config.model.patch_embed.model_copy(update={"token_id": None})
    config = config.model_copy(update={"model": config.model.model_copy(update={"patch_embed": embed})})
    with pytest.raises(LayoutError, match=r"model.patch_embed.token_id is not set"):
        import_repository(tmp_path / "source", config, tmp_path / "out")


def remove(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def add(tensors):
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [(remove, "missing: model.layers.1.mlp.up_proj.weight"), (add, "left over: model.layers.2.mlp.up_proj.weight")],
)
def test_tensors_that_are_missing_or_left_over(tmp_path, change, message):
    save(tmp_path / "source", "mistral", change=change)
    with pytest.raises(LayoutError, match=message):
        import_repository(tmp_path / "source", grown("mistral"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_cannot_be_read(tmp_path):
    save(tmp_path / "source", "mistral")
    shards = sorted((tmp_path / "source").glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="is cut or damaged"):
        import_repository(tmp_path / "source", grown("mistral"), tmp_path / "out")
    for file in (*shards, tmp_path / "source" / "model.safetensors.index.json"):
        file.unlink()
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(TensorFileError, match="pickles"):
        import_repository(tmp_path / "source", grown("mistral"), tmp_path / "out")
    (tmp_path / "source" / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(LayoutError, match=r"is of model_type 'gpt2' \(GPT2LMHeadModel\); solo reads native, solo"):
        import_repository(tmp_path / "source", grown("mistral"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    save(tmp_path / "source", "mistral")
    calls = iter(range(10))
    real = TensorReader.read

    def failing(self, name, *rows):
        if next(calls) == 5:
            raise OSError(28, "No space left on device")
        return real(self, name, *rows)

    monkeypatch.setattr(TensorReader, "read", failing)
    with pytest.raises(OSError, match="No space left"):
        import_repository(tmp_path / "source", grown("mistral"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_there_is_not_overwritten(tmp_path):
    save(tmp_path / "source", "mistral")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="it is not overwritten"):
        import_repository(tmp_path / "source", grown("mistral"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_progress_ends_with_everything(tmp_path):
    save(tmp_path / "source", "mistral")
    seen = []
    done = import_repository(
        tmp_path / "source", grown("mistral"), tmp_path / "out", progress=lambda *counts: seen.append(counts)
    )
    assert len(seen) == done.tensors
    assert seen[-1] == (done.nbytes, done.nbytes)
    assert sorted(seen) == seen


def with_pieces(config, *pieces):
    tokenizer = config.data.tokenizer.model_copy(update={"add_pieces": pieces})
    return config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": tokenizer})})


def test_the_tokenizer_comes_along_with_more_pieces(tmp_path):
    """493 pieces of SentencePiece, 500 rows: three pieces fit without new rows, ten do not."""
    save(tmp_path / "source", "mistral", rows=500)
    (tmp_path / "source" / "tokenizer.model").write_bytes(foreign_model(500))
    old = open_tokenizer(tmp_path / "source")
    assert old.vocab_size == 493
    config = with_pieces(grown("mistral", vocab_size=None), "<vision>", "<loc_{1..9}>")
    done = import_repository(tmp_path / "source", config, tmp_path / "out")
    tokenizer = open_tokenizer(tmp_path / "out")
    assert (done.rows, done.tokenizer, tokenizer.vocab_size) == ((500, 503), 503, 503)
    assert (tokenizer.find("<vision>"), tokenizer.find("<loc_9>")) == (493, 502)
    assert tokenizer.encode("as it was") == old.encode("as it was")
    assert read_config_json(tmp_path / "out")["vocab_size"] == 503
    few = with_pieces(grown("mistral", vocab_size=None), "<vision>")
    assert import_repository(tmp_path / "source", few, tmp_path / "few").rows == (500, 500)


def test_a_byte_level_tokenizer_comes_along(tmp_path):
    save(tmp_path / "source", "qwen3", rows=420)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_repository(tmp_path / "source", names, tokenizer_json=byte_level_json(400))
    config = with_pieces(grown("qwen3", vocab_size=420), "<img>")
    import_repository(tmp_path / "source", config, tmp_path / "out")
    old, tokenizer = open_tokenizer(tmp_path / "source"), open_tokenizer(tmp_path / "out")
    assert tokenizer.find("<img>") == old.vocab_size
    assert tokenizer.special == old.special
    assert tokenizer.encode("as it was") == old.encode("as it was")


def test_more_pieces_than_rows(tmp_path):
    save(tmp_path / "source", "mistral", rows=492)
    (tmp_path / "source" / "tokenizer.model").write_bytes(foreign_model(500))
    with pytest.raises(ValueError, match=r"has 493 pieces, but config.json 492 rows"):
        import_repository(tmp_path / "source", grown("mistral", vocab_size=600), tmp_path / "out")
    save(tmp_path / "other", "mistral", rows=493)
    (tmp_path / "other" / "tokenizer.model").write_bytes(foreign_model(500))
    config = with_pieces(grown("mistral", vocab_size=495), "<a>", "<b>", "<c>")
    with pytest.raises(ValueError, match=r"has 496 pieces with data.tokenizer.add_pieces, but model.vocab_size is 495"):
        import_repository(tmp_path / "other", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_did(tmp_path, capsys):
    save(tmp_path / "source", "internlm2")
    config, out = tmp_path / "mono.yaml", tmp_path / "out"
    config.write_text(dump_config(grown("internlm2")))
    arguments = ["import", str(tmp_path / "source"), "--as", str(config), "--out", str(out)]
    assert main([*arguments, "--new-tokens", "normal", "--set", "model.vocab_size=120"]) == 0
    said = capsys.readouterr().out
    for line in (
        "read as internlm2: 37 tensors",
        "experts of patches: 6 tensors, copies of the text's",
        "embedder of patches: 10 tensors, drawn",
        "vocabulary: 100 rows, and 20 for new tokens; no tokenizer: data.tokenizer.path must name one",
        f"written to {out}",
    ):
        assert line in said
    assert main(arguments) == 2
    assert "exists; it is not overwritten" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "new"), "--set", "model.width=64"]) == 2
    assert "model.width: 32 there, 64 here" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
