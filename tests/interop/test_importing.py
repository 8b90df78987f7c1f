"""Conversion is lossless; a source that does not fit is refused before anything is written."""

import json

import ml_dtypes
import numpy as np
import pytest

from solo.cli import main
from solo.config import dump_config
from solo.data.text import open_tokenizer
from solo.interop.config_json import read_config_json
from solo.interop.importing import import_repository
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS
from solo.interop.layouts.native import NATIVE
from solo.interop.tensor_files import TensorFileError, TensorReader
from tests.data.vocabularies import byte_level_json, foreign_model, write_repository
from tests.interop.models import TINY, tiny, upcycled
from tests.interop.repositories import save

MONOLITHS = tuple(name for name in TINY if LAYOUTS[tiny(name)[0]].has_images)


def read(folder):
    with TensorReader(folder) as reader:
        return {name: reader.read(name) for name in reader}


@pytest.mark.parametrize("name", MONOLITHS)
def test_import_and_export_is_the_identity_bit_for_bit(tmp_path, name):
    layout, config, definition = tiny(name)
    tensors = save(tmp_path / "source", name, ml_dtypes.bfloat16)
    done = import_repository(tmp_path / "source", config, tmp_path / "out", max_shard_bytes=30_000)
    assert (done.layout, done.copied, done.drawn, done.rows) == (layout, 0, 0, (100, 100))
    stored = read(tmp_path / "out")
    ours = {rule.slices[0]: rule.split(stored[rule.name])[0] for rule in NATIVE.tensors(definition)}
    for rule in LAYOUTS[layout].tensors(definition):
        again = rule.join([ours[part] for part in rule.slices])
        assert again.dtype == ml_dtypes.bfloat16
        assert again.tobytes() == tensors[rule.name].tobytes(), rule.name
    # Again from our own layout.
    import_repository(tmp_path / "out", config, tmp_path / "twice")
    assert {key: values.tobytes() for key, values in read(tmp_path / "twice").items()} == {
        key: values.tobytes() for key, values in stored.items()
    }
    written = read_config_json(tmp_path / "out")
    assert written["dtype"] == "bfloat16"
    assert NATIVE.config_from(written)["model"] == json.loads(config.model.model_dump_json())


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"width": 64}, ["model.width: 32 there, 64 here", "model.head_dim: 8 there, 16 here"]),
        ({"layers": 3, "ffn_width": 49}, ["model.layers: 2 there, 3 here", "model.ffn_width: 48 there, 49 here"]),
        ({"rope_theta": 5.0}, ["model.rope_theta: 10000.0 there, 5.0 here"]),
        ({"bias": "qkv"}, ["model.bias: none there, qkv here"]),
        ({"vocab_size": 99}, ["model.vocab_size: 100 there, 99 here; rows can be added, not removed"]),
        (
            {"experts": {"ffn": "moe"}},
            ["model.experts.ffn: shared there, moe here; a mixture of experts cannot"],
        ),
    ],
)
def test_a_source_of_another_model_is_refused_key_by_key(tmp_path, change, lines):
    save(tmp_path / "source", "mistral")
    with pytest.raises(LayoutError, match=r"\(mistral\) is not the model that 'upcycled' describes") as error:
        import_repository(tmp_path / "source", upcycled("mistral", **change), tmp_path / "out")
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


def test_solo_needs_the_token_that_is_added_to_patches(tmp_path):
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
        import_repository(tmp_path / "source", upcycled("mistral"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_are_checked_even_if_configs_agree(tmp_path, monkeypatch):
    """Every parameter needs a source and every tensor a use, whatever the configs say."""
    _, config, _ = tiny("mono_internvl")
    monkeypatch.setattr("solo.interop.importing.check_agreement", lambda *_: [])
    save(tmp_path / "source", "mono_internvl")
    embed = config.model.patch_embed.model_copy(update={"class_slot": False})
    experts = config.model.experts.model_copy(update={"ffn": "shared"})
    model = config.model.model_copy(update={"patch_embed": embed, "experts": experts})
    with pytest.raises(LayoutError, match="cannot become this model") as error:
        import_repository(tmp_path / "source", config.model_copy(update={"model": model}), tmp_path / "out")
    for line in (
        "missing: layers/ffn/shared/up[1]",
        "left over: layers/ffn/text/up[1]",
        "left over: layers/ffn/patches/up[1]",
    ):
        assert line in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_unreadable_source(tmp_path):
    save(tmp_path / "source", "mistral")
    shards = sorted((tmp_path / "source").glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="is damaged, truncated or"):
        import_repository(tmp_path / "source", upcycled("mistral"), tmp_path / "out")
    for file in (*shards, tmp_path / "source" / "model.safetensors.index.json"):
        file.unlink()
    (tmp_path / "source" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(TensorFileError, match="pickles"):
        import_repository(tmp_path / "source", upcycled("mistral"), tmp_path / "out")
    (tmp_path / "source" / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(LayoutError, match=r"is of model_type 'gpt2' \(GPT2LMHeadModel\); solo reads native, solo"):
        import_repository(tmp_path / "source", upcycled("mistral"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    save(tmp_path / "source", "mistral")
    calls = iter(range(10))
    real = TensorReader.read

    def failing(self, name, *rows):
        if next(calls) == 5:
            raise OSError(28, "No space left on device")
        return real(self, name, *rows)

    monkeypatch.setattr(TensorReader, "read", failing)
    with pytest.raises(TensorFileError, match="out was not written: No space left"):
        import_repository(tmp_path / "source", upcycled("mistral"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_existing_folder_is_not_overwritten(tmp_path):
    save(tmp_path / "source", "mistral")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="already exists; remove it"):
        import_repository(tmp_path / "source", upcycled("mistral"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_progress_ends_with_everything(tmp_path):
    save(tmp_path / "source", "mistral")
    seen = []
    done = import_repository(
        tmp_path / "source", upcycled("mistral"), tmp_path / "out", progress=lambda *counts: seen.append(counts)
    )
    assert len(seen) == done.tensors
    assert seen[-1] == (done.nbytes, done.nbytes)
    assert sorted(seen) == seen


def test_a_token_added_to_patches_outside_the_vocabulary(tmp_path):
    save(tmp_path / "source", "mistral")
    with pytest.raises(ValueError, match=r"model.patch_embed.token_id is 101, but the vocabulary has 101 rows"):
        import_repository(
            tmp_path / "source", upcycled("mistral", vocab_size=101, patch_embed={"token_id": 101}), tmp_path / "out"
        )


def with_tokens(config, *tokens):
    tokenizer = config.data.tokenizer.model_copy(update={"add_tokens": tokens})
    return config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": tokenizer})})


def test_the_tokenizer_is_copied_and_extended(tmp_path):
    """A SentencePiece model with 493 tokens and 500 rows: one token fits without new rows, ten do not."""
    save(tmp_path / "source", "mistral", rows=500)
    (tmp_path / "source" / "tokenizer.model").write_bytes(foreign_model(500))
    old = open_tokenizer(tmp_path / "source")
    assert old.vocab_size == 493
    config = with_tokens(upcycled("mistral", vocab_size=None), "<vision>", "<loc_{1..9}>")
    done = import_repository(tmp_path / "source", config, tmp_path / "out")
    tokenizer = open_tokenizer(tmp_path / "out")
    assert (done.rows, done.tokenizer, tokenizer.vocab_size) == ((500, 503), 503, 503)
    assert (tokenizer.find("<vision>"), tokenizer.find("<loc_9>")) == (493, 502)
    assert tokenizer.encode("as it was") == old.encode("as it was")
    assert read_config_json(tmp_path / "out")["vocab_size"] == 503
    few = with_tokens(upcycled("mistral", vocab_size=None), "<vision>")
    assert import_repository(tmp_path / "source", few, tmp_path / "few").rows == (500, 500)


def test_a_byte_level_tokenizer_is_copied(tmp_path):
    save(tmp_path / "source", "qwen3", rows=420)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_repository(tmp_path / "source", names, tokenizer_json=byte_level_json(400))
    config = with_tokens(upcycled("qwen3", vocab_size=420), "<img>")
    import_repository(tmp_path / "source", config, tmp_path / "out")
    old, tokenizer = open_tokenizer(tmp_path / "source"), open_tokenizer(tmp_path / "out")
    assert tokenizer.find("<img>") == old.vocab_size
    assert tokenizer.special == old.special
    assert tokenizer.encode("as it was") == old.encode("as it was")


def test_more_tokens_than_rows(tmp_path):
    save(tmp_path / "source", "mistral", rows=492)
    (tmp_path / "source" / "tokenizer.model").write_bytes(foreign_model(500))
    with pytest.raises(ValueError, match=r"has 493 tokens, but config.json 492 rows"):
        import_repository(tmp_path / "source", upcycled("mistral", vocab_size=600), tmp_path / "out")
    save(tmp_path / "other", "mistral", rows=493)
    (tmp_path / "other" / "tokenizer.model").write_bytes(foreign_model(500))
    config = with_tokens(upcycled("mistral", vocab_size=495), "<a>", "<b>", "<c>")
    with pytest.raises(ValueError, match=r"has 496 tokens with data.tokenizer.add_tokens, but model.vocab_size is 495"):
        import_repository(tmp_path / "other", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path, capsys):
    save(tmp_path / "source", "internlm2")
    config, out = tmp_path / "mono.yaml", tmp_path / "out"
    config.write_text(dump_config(upcycled("internlm2")))
    arguments = ["import", str(tmp_path / "source"), "--as", str(config), "--out", str(out)]
    assert main([*arguments, "--new-tokens", "normal", "--set", "model.vocab_size=120"]) == 0
    said = capsys.readouterr().out
    for line in (
        "read as internlm2: 37 tensors",
        "visual experts: 6 tensors, copied from the text's",
        "patch embedding: 10 tensors, initialised randomly",
        "vocabulary: 100 rows, and 20 for new tokens; no tokenizer: data.tokenizer.path must name one",
        f"written to {out}",
    ):
        assert line in said
    assert main(arguments) == 2
    assert "already exists; remove it" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "new"), "--set", "model.width=64"]) == 2
    assert "model.width: 32 there, 64 here" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path / "new"), "--seed", "-1"]) == 2
    assert "the seed is -1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    # Brackets are no markup of the terminal.
    assert main([*arguments[:-1], str(tmp_path / "a [red] b[/x]")]) == 0
    assert f"written to {tmp_path}/a [red] b[/x]" in capsys.readouterr().out


def test_tokenizer_files_that_are_not_read_are_noted(tmp_path):
    save(tmp_path / "source", "qwen3")
    (tmp_path / "source" / "vocab.json").write_text("{}")
    (note,) = import_repository(tmp_path / "source", upcycled("qwen3"), tmp_path / "out").notes
    assert "vocab.json and merges.txt are not read" in note
