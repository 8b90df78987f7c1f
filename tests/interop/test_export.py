"""Exports of tiny runs in every layout: files, refusals, verification."""

import json
import re
import shutil

import numpy as np
import pytest

import solo
from solo.cli import main
from solo.data.text import extend_tokenizer
from solo.data.text.huggingface import HuggingFaceTokenizer
from solo.inference.monolith import Monolith
from solo.interop.export import export
from solo.interop.layout import LayoutError
from solo.interop.layouts import LAYOUTS
from solo.interop.tensor_files import TensorReader
from solo.interop.verify import VerificationError, compare
from solo.model.parameters import define
from solo.training.checkpoint import CheckpointError
from tests.data.vocabularies import byte_level_json
from tests.interop.runs import SECTIONS, saved_run
from tests.tiny import MODEL, save_run, tiny_config, tiny_monolith

ALWAYS = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}
WITH_IMAGES = {
    "image_processing_solo.py",
    "preprocessor_config.json",
    "processing_solo.py",
    "processor_config.json",
    "versions_solo.py",
}
NATIVE_ONLY = {"configuration_solo.py", "layers_solo.py", "modeling_solo.py", "spans_solo.py"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_tokenizer):
    """Returns a function from a name in SECTIONS to the folder of a run, which it makes on demand."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("runs") / name.replace(" ", "_")
            made[name] = saved_run(folder, tiny_tokenizer, **SECTIONS[name])
        return made[name]

    return get


@pytest.mark.parametrize("name", SECTIONS)
def test_every_layout_is_written_and_loaded_again(name, runs, tmp_path):
    layout = name.split()[0]
    done = export(runs(name), tmp_path / "out", layout, verified=False)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    processor = WITH_IMAGES if LAYOUTS[layout].has_images else set()
    assert files == ALWAYS | processor | (NATIVE_ONLY if layout == "native" else set())
    assert done.placeholder == ("<image>" if layout in ("native", "fuyu", "gemma4_unified") else None)
    assert bool(done.left_out) == (not LAYOUTS[layout].has_images)
    before, after = solo.load(runs(name)), solo.load(tmp_path / "out")
    rows = before.definition.vocab_size
    for path in before.parameters.keys() - set(done.left_out):
        theirs = path.replace("text", "shared") if path not in after.parameters else path
        ours, found = (np.asarray(each) for each in (before.parameters[path], after.parameters[theirs]))
        cut = {"text_embed": np.s_[:rows], "head": np.s_[:, :rows]}.get(path, ...)
        np.testing.assert_array_equal(found[cut], ours[cut], err_msg=path)


# transformers has no class for internlm2.
@pytest.mark.parametrize("name", [name for name in SECTIONS if name.split()[0] != "internlm2"])
def test_pytorch_computes_the_logits_of_the_checkpoint(name, runs, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    dtype = "bfloat16" if name == "native" else "float32"
    done = export(runs(name), tmp_path / "out", name.split()[0], dtype=dtype)
    found = done.verification
    assert found is not None
    assert found.reference is not None
    assert found.tensors == done.tensors
    expected = ["text", "image and text", "two images and text"] if LAYOUTS[done.layout].has_images else ["text"]
    assert [comparison.name for comparison in found.comparisons] == expected
    assert found.answers == len(expected)
    assert all(comparison.difference < 1e-4 * comparison.spread for comparison in found.comparisons)
    assert all(comparison.spread > 0.3 for comparison in found.comparisons)


def test_a_byte_level_tokenizer_and_another_template(tmp_path):
    """As in a monolith upcycled from a Qwen: texts have no BOS token, and the template has stop tokens of its own."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    tokenizer = HuggingFaceTokenizer(byte_level_json(), None, "<|endoftext|>", None)
    tokenizer = extend_tokenizer(tokenizer, ["<vision>", "</vision>", "<vrow_sep>"])
    chatml = {"template": "chatml", "system": "You see."}
    run = saved_run(tmp_path / "run", tokenizer, **SECTIONS["native"], sequence=chatml)
    done = export(run, tmp_path / "out")
    assert done.verification is not None
    assert done.verification.answers == 3
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    stops = [tokenizer.id(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert settings["eos_token_id"] == stops
    assert settings["bos_token_id"] is None


def test_a_failed_verification_leaves_nothing(runs, tmp_path, monkeypatch):
    """Changes one value on its way to disk."""
    from solo.interop import export as module

    def spoiled(folder, tensors, values, **options):
        def value(name):
            found = np.array(values(name), order="C")
            found.reshape(-1)[-1] += name == "model.layers.1.out.shared.weight"
            return found

        write(folder, tensors, value, **options)

    write = module.write_tensors
    monkeypatch.setattr(module, "write_tensors", spoiled)
    with pytest.raises(VerificationError, match=r"model\.layers\.1\.out\.shared\.weight was"):
        export(runs("native"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_logits_fail_the_verification(runs, tmp_path, monkeypatch):
    """Writes a config with another base of the rotary positions than the model's."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from solo.interop import repository

    true = repository.config_json

    def wrong(plan):
        found = true(plan)
        found["model"]["rope_theta"] = 500.0
        return found

    monkeypatch.setattr(repository, "config_json", wrong)
    with pytest.raises(VerificationError, match="text: the logits are not those of the checkpoint"):
        export(runs("native"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "layout", "switch"),
    [
        ("native", "fuyu", "model.patch_embed.bias"),
        ("native", "solo", "model.patch_embed.token_id"),
        ("native", "mono_internvl", "model"),
        ("native", "qwen2", "model.bias"),
        ("qwen2", "llama", "model.bias"),
        ("mistral", "llama", "sequence.sliding_window"),
    ],
)
def test_a_layout_that_cannot_store_the_model_names_the_key(name, layout, switch, runs, tmp_path):
    with pytest.raises(LayoutError, match=switch):
        export(runs(name), tmp_path / "out", layout)
    assert list(tmp_path.iterdir()) == []


def test_shards_and_their_index(runs, tmp_path):
    done = export(runs("native"), tmp_path / "out", max_shard_bytes=60_000, verified=False)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.nbytes
    assert len(set(index["weight_map"].values())) > 2
    with TensorReader(tmp_path / "out") as reader:
        assert set(reader) == set(index["weight_map"])


def test_generation_stops_and_suppresses_tokens_as_ours_does(runs, tmp_path):
    export(runs("native"), tmp_path / "out", verified=False)
    model = solo.load(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [model.tokenizer.special.eos] == list(model.template.stops)
    assert settings["suppress_tokens"] == sorted(model.tokenizer.special_ids - {model.tokenizer.special.eos})
    assert model.tokenizer.find("<image>") in settings["suppress_tokens"]


def test_an_export_can_be_exported(runs, tmp_path):
    """A native repository can be exported again; its placeholder is not appended twice."""
    export(runs("native"), tmp_path / "first", verified=False)
    done = export(tmp_path / "first", tmp_path / "second", verified=False)
    assert done.placeholder is None
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.stat().st_size == second.stat().st_size
    with TensorReader(first) as a, TensorReader(second) as b:
        assert all(np.array_equal(a.read(name), b.read(name)) for name in a)


def test_the_command_line(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(runs("native")), "--to", str(out), "--layout", "llama", "--no-verify"]) == 0
    shown = capsys.readouterr().out
    assert "only the text path is written; left out" in shown
    assert "not verified" in shown
    assert main(["export", str(runs("native")), "--to", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["export", str(runs("native")), "--to", str(tmp_path / "b"), "--layout", "natve"]) == 2
    assert "did you mean 'native'" in capsys.readouterr().err


def test_the_model_card_has_the_metrics_of_the_run(runs, tmp_path):
    run = runs("llama")
    fields = {"stage": "s", "tokens": 8, "visual_tokens": 3, "useful_share": 1.0, "timing": {"step_seconds": 0.5}}
    lines = [
        {"kind": "train", "step": 1, "loss": 5.0, "total_tokens": 100, "total_flops": 10, **fields},
        {"kind": "train", "step": 2, "loss": 2.5, "total_tokens": 1234, "total_flops": 20, **fields},
        {"kind": "evaluation", "step": 2, "task": "reading", "metric": "exact_match", "score": 87.5, "examples": 40},
        {"kind": "train", "step": 3, "loss": 1.0, "total_tokens": 9999, "total_flops": 30, **fields},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    export(run, tmp_path / "out", "llama", verified=False)
    card = (tmp_path / "out" / "README.md").read_text()
    for wanted in ("| 2.5000 |", "| 1,234 |", "| reading | exact_match | 87.5 | 40 | 2 |", "config digest"):
        assert wanted in card
    assert "9,999" not in card, "a later step than the checkpoint's"


def test_logit_comparison():
    ours = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]], np.float32))
    theirs = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.2, 0.3]], np.float32)) + 1.0
    found = compare("some", ours, theirs)
    assert found.top_1 == 0.5
    assert found.divergence == pytest.approx((0.2 * np.log(0.2 / 0.5) + 0.5 * np.log(0.5 / 0.2)) / 2, rel=1e-5)
    assert found.difference == pytest.approx(1 + np.log(0.5 / 0.2), rel=1e-5)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e6, "float16", r"layers/ffn/text/up\[1\] has values up to 1e\+06, which float16 cannot store"),
        (np.nan, "float32", r"layers/ffn/text/up\[1\] of .* has values that are infinite or not a number"),
    ],
)
def test_weights_that_are_not_finite_are_refused(value, dtype, message, runs, tmp_path):
    model = solo.load(runs("native"))
    parameters = {path: np.array(values) for path, values in model.parameters.items()}
    parameters["layers/ffn/text/up"][1, 2, 3] = value
    run = save_run(Monolith(model.config, model.tokenizer, parameters), tmp_path / "run", 1)
    with pytest.raises(ValueError, match=message):
        export(run, tmp_path / "out", dtype=dtype, verified=False)
    assert not (tmp_path / "out").exists()
    if dtype == "float16":
        export(run, tmp_path / "out", dtype="bfloat16", verified=False)


def test_a_checkpoint_is_found_from_within_and_through_a_link(runs, tmp_path, monkeypatch):
    checkpoints = runs("llama") / "checkpoints"
    (tmp_path / "link").symlink_to(checkpoints / "2")
    for here, name in ((checkpoints, "2"), (checkpoints / "2", "."), (tmp_path, "link")):
        monkeypatch.chdir(here)
        assert solo.load(name).config.name == "tiny"
        export(name, tmp_path / f"out of {here.name}", "llama", verified=False)


def test_checkpoints_that_are_not_complete(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs("llama"), run)
    (run / "checkpoints" / "9").mkdir()
    shutil.copytree(run / "checkpoints" / "2", run / "checkpoints" / "5.backup")
    export(run, tmp_path / "out", "llama", verified=False)
    for name in ("9", "5.backup"):
        assert main(["export", str(run / "checkpoints" / name), "--to", str(tmp_path / "other")]) == 2
        assert f"{name} is not a complete checkpoint" in capsys.readouterr().err


@pytest.fixture(scope="module")
def several(tmp_path_factory, tiny_tokenizer):
    """A run with checkpoints of steps 1, 2, 4 and 9, and an average in each."""
    config = tiny_config(averages={"ema": {"decay": 0.5}}, checkpoint={"keep_latest": 9})
    model = tiny_monolith(tiny_tokenizer, config)
    return save_run(model, tmp_path_factory.mktemp("several") / "run", 1, 2, 4, 9, ema=10.0), model


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ([], 9.0),
        (["--average", "3"], 5.0),
        (["--average", "9,1,4"], 14 / 3),
        (["--weights", "ema"], 90.0),
        (["--weights", "ema", "--average", "2"], 65.0),
    ],
)
def test_an_export_is_of_the_weights_that_were_asked_for(several, tmp_path, options, factor):
    """The parameters of step n are the model's times n, norms and embeddings included."""
    run, model = several
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--no-verify", *options]) == 0
    found, ema = solo.load(tmp_path / "out").parameters, "ema" in options
    rows = model.tokenizer.vocab_size
    for path, value in model.parameters.items():
        cut = {"text_embed": np.s_[:rows], "head": np.s_[:, :rows]}.get(path, ...)
        times = factor / 10 if ema and path == "head" else factor  # the head has no average
        expected = np.asarray(value, np.float64)[cut] * times
        np.testing.assert_allclose(np.asarray(found[path])[cut], expected, rtol=3e-7, err_msg=path)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("| weights | ema, an exponential moving average of decay 0.5 |" in card) == ema
    assert ("| mean of the checkpoints of steps | 1, 4, 9 |" in card) == ("9,1,4" in options)
    assert ("| checkpoint step | 9 |" in card) == ("--average" not in options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--average", "5"], r"cannot average 5 checkpoints: .*/run has 4 complete checkpoints: 1, 2, 4, 9\. A run"),
        (["--average", "1"], "a mean needs two checkpoints or more"),
        (["--average", "4,5,6"], r"cannot average the checkpoints of steps 5, 6: .* 1, 2, 4, 9"),
        (["--average", "4,4"], "a step is named twice"),
        (["--weights", "sma"], r"no weights 'sma' here; there are trained, ema"),
    ],
)
def test_weights_that_are_not_there_are_named_with_those_that_are(several, tmp_path, capsys, options, message):
    run, _ = several
    assert main(["export", str(run), "--to", str(tmp_path / "out"), *options]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_of_a_mean_is_named(several, tmp_path):
    run = shutil.copytree(several[0], tmp_path / "run")
    files = [path for path in (run / "checkpoints" / "4").rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint .*/checkpoints/4 is damaged"):
        export(run, tmp_path / "out", average=3, verified=False)


def test_a_checkpoint_of_another_model_is_not_averaged(several, tmp_path, tiny_tokenizer):
    run = shutil.copytree(several[0], tmp_path / "run")
    config = tiny_config(model=MODEL | {"experts": {}})
    specs = define(config, tiny_tokenizer.vocab_size).specs
    zeros = {path: np.zeros(spec.shape, np.float32) for path, spec in specs.items()}
    other = save_run(Monolith(config, tiny_tokenizer, zeros), tmp_path / "other", 5)
    shutil.copytree(other / "checkpoints" / "5", run / "checkpoints" / "5")
    message = r"checkpoints/5 is not a checkpoint of this run's model:\n  missing in the checkpoint: layers/"
    with pytest.raises(CheckpointError, match=message):
        export(run, tmp_path / "out", average=(4, 5), verified=False)
