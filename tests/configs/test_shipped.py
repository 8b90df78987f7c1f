"""Every shipped config loads whole and trains: its readers, tokenizer, template, images, stages and mixtures.

Files that a config names (conversations, images, a tokenizer, initial weights) are replaced by small ones at the same
paths. Sizes are reduced: width, layers, vocabulary, rows and steps. All other values are those of the file.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.cli import main
from solo.config import Config, MeshConfig, parse_config, read_config, set_value
from solo.data.store.prepare import prepare
from solo.data.vocabulary import configured_tokenizer
from solo.files import read_json_lines
from solo.interop.layouts import LAYOUTS
from solo.interop.tensor_files import TensorInfo, write_tensors
from solo.loading import initial_parameters
from solo.model.count import count_parameters
from solo.model.parameters import define
from solo.scaling.sweep.spec import load_spec
from solo.sharding.mesh import make_mesh
from solo.training.observer import Observer
from solo.training.run_folder import RunFolder
from solo.training.trainer import Trainer
from tests.data.vocabularies import TEXTS, byte_level_json, foreign_model, write_repository

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {str(path.relative_to(CONFIGS)): path for path in sorted(CONFIGS.rglob("*.yaml"))}
SWEEPS = [name for name, path in FILES.items() if "base" in read_config(path)]
RUNS = [name for name in FILES if name not in SWEEPS]
WITH_UNKNOWN = [name for name in RUNS if "unknown" in json.dumps(read_config(FILES[name]))]
RECORDS = 6


def test_every_file_is_a_run_or_a_sweep_over_one() -> None:
    assert {Path(name).parts[0] for name in RUNS} == {"models", "recipes", "plans", "sweeps", "quickstart.yaml"}
    for name in SWEEPS:
        spec = load_spec(FILES[name])
        assert str(Path(name).parent / read_config(FILES[name])["base"]) in RUNS, spec


@pytest.mark.parametrize("name", WITH_UNKNOWN)
def test_train_asks_for_every_value_that_a_source_does_not_state(name: str, capsys: pytest.CaptureFixture) -> None:
    unknown = list(_unknown(read_config(FILES[name])))
    assert main(["train", str(FILES[name])]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("solo: ")
    assert first.endswith("has values that its source does not state; set them:")
    assert others == [f"  {key}=..." for key in unknown]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_config_trains_a_step_of_every_stage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_config(FILES[name])
    monkeypatch.chdir(tmp_path)
    config = parse_config(_reduced(data))
    _write_sources(config)
    _write_tokenizer(config)
    if config.init_from:
        _write_weights(config)
    prepared = prepare(config)
    assert prepared.quarantined == 0
    run, mesh = RunFolder.open(config), make_mesh(MeshConfig(), jax.devices()[:1])
    initial = partial(initial_parameters, config.init_from) if config.init_from else None
    Trainer(config, prepared, run, Observer(), mesh=mesh, initial=initial).train()
    lines = [line for line in read_json_lines(run.metrics_file)[0] if line["kind"] == "train"]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == [stage.name for stage in config.stages]
    assert all(np.isfinite(line["loss"]) and line["tokens"] for line in lines), lines


# Tensors and parameters of the published repositories; those of NEO-unify 8B follow from NEO 1.0 9B: each layer has no
# projections of rows and columns of its own, and norms of 64 + 64 dimensions instead of 128 + 64 + 64.
_UNIFY = 10_246_797_312 - 42 * (4096 * (32 + 8) * 128 + 2 * 128)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [("neo_1_0_2b", 687, 2_896_618_496), ("neo_1_0_9b", 721, 10_246_797_312), ("neo_unify_8b", 553, _UNIFY)],
)
def test_neo_has_the_tensors_and_parameters_of_the_published_one(name: str, tensors: int, parameters: int) -> None:
    definition = define(parse_config(read_config(CONFIGS / "models" / f"{name}.yaml")), None)
    layout = LAYOUTS["neo_unify" if name == "neo_unify_8b" else "neo"]
    assert len(layout.tensors(definition)) == tensors
    assert definition.num_parameters() == parameters
    assert sum(each.total for each in count_parameters(definition)) == parameters


# ------------------------------------------------------------------------------------ reduced sizes


def _unknown(node: Any, path: str = "") -> Iterator[str]:
    if node == "unknown":
        yield path
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _unknown(value, f"{path}.{key}".strip("."))


def _reduced(data: dict[str, Any]) -> dict[str, Any]:
    for key in list(_unknown(data)):
        set_value(data, key, 1e-3 if key.endswith("learning_rate") else 1)
    _reduce_model(data["model"])
    image = data["image"]
    if image.get("geometry") == "tiles":
        image["tile_size"] = 4 * image["patch_size"]
    if image.get("geometry") == "area":
        image |= {"min_pixels": 2 * image["patch_size"] ** 2, "max_pixels": 6 * image["patch_size"] ** 2}
    sources = data.setdefault("data", {}).setdefault("sources", {})
    if not sources:
        sources["pairs"] = {"reader": "llava", "options": {"path": "pairs.jsonl", "images": "images"}}
    for source in sources.values():
        source["limit"] = RECORDS
    tokenizer = data["data"].setdefault("tokenizer", {})
    if "vocab_size" in tokenizer:
        tokenizer["vocab_size"] = 340
    else:
        tokenizer.setdefault("path", "weights/tokenizer")
    stage = {"name": "only", "mixture": {"pairs": 1.0}, "steps": 1, "optimizer": {"learning_rate": 1e-3}}
    data["stages"] = [_reduce_stage(stage) for stage in data.get("stages", [stage])]
    return data


def _reduce_model(model: dict[str, Any]) -> None:
    kv_heads = 4 if model["kv_heads"] == model["heads"] else 2
    model |= {
        "attention_implementation": "dense",
        "width": 32,
        "layers": 1,
        "heads": 4,
        "kv_heads": kv_heads,
        "ffn_width": 48,
    }
    model.pop("vocab_size", None)
    model.pop("head_dim", None)
    if "layer_types" in model:
        # One layer of every type, and heads whose width the file's fractions divide.
        model |= {"layers": len(model["layer_types"]), "head_dim": 8}
        model["layer_pattern"] = [each["name"] for each in model["layer_types"]]
        small = {"kv_heads": 1, "head_dim": 16}
        model["layer_types"] = [
            {key: small.get(key, value) for key, value in each.items()} for each in model["layer_types"]
        ]
    if "rope_sections" in model:
        model["rope_sections"] = [0, 2, 2]
    if "head_parts" in model:
        main = [part for part in model["head_parts"] if part.get("projection") != "grid"]
        for part in model["head_parts"]:
            part["width"] = 8 if main == [part] else 4 if part == main[0] else 2
    embed = model.get("patch_embed", {})
    embed |= {key: small for key, small in (("inner_width", 8), ("grid_side", 8), ("token_id", 7)) if key in embed}


def _reduce_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """One step where the file gives steps; a file's one pass is over few records."""
    stage = {**stage, "row_slots": 512, "batch_rows": 2, "accumulate": min(stage.get("accumulate", 1), 2)}
    if "epochs" in stage:
        stage |= {"batch_rows": 1, "accumulate": 1}
    else:
        stage["steps"] = 1
    if "train" in stage:
        stage["train"] = [re.sub(r"layers\[:\d+\]", "layers[:1]", pattern) for pattern in stage["train"]]
    if "patch_slots" in stage:
        stage |= {"patch_slots": 128, "text_slots": 128, "target_slots": 128}
    return stage


# ---------------------------------------------------------------------------------- stand-in files


def _write_sources(config: Config) -> None:
    for number, source in enumerate(config.data.sources.values()):
        if source.reader == "llava":
            _write_conversations(number, Path(source.options["path"]), source.options.get("images"))


def _write_conversations(number: int, path: Path, images: str | None) -> None:
    lines = []
    for record in range(RECORDS):
        text = TEXTS[0][100 * record : 100 * (record + 1)]
        turns = [{"from": "human", "value": "What does it say?"}, {"from": "gpt", "value": text}]
        example: dict[str, Any] = {"id": record, "conversations": turns}
        if images is not None:
            example["image"] = f"{number}/{record}.png"
            file = Path(images) / example["image"]
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(record).integers(0, 255, (64, 96, 3), np.uint8)
            PillowImage.fromarray(pixels).save(file)
        lines.append(json.dumps(example) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def _write_tokenizer(config: Config) -> None:
    """A tokenizer of the model's family: with the tokens that its own has, and without those that the config adds."""
    if config.data.tokenizer.path is None:
        return
    folder = Path(config.data.tokenizer.path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if config.sequence.template in ("chatml", "neo"):
        write_repository(folder, {"eos_token": "<|im_end|>"}, tokenizer_json=byte_level_json())
        return
    own = {
        "internlm2_chat": ["<|im_start|>", "<|im_end|>"],
        "fuyu": ["|NEWLINE|", "|SPEAKER|"],
        "gemma4": ["<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>"],
    }
    added = {500 + number: {"content": token} for number, token in enumerate(own.get(config.sequence.template, []))}
    write_repository(folder, {"added_tokens_decoder": added}, tokenizer_model=foreign_model(507))


def _write_weights(config: Config) -> None:
    """Random weights at `init_from`, as `solo import` writes them."""
    layout = LAYOUTS[next(name for name in ("solo", "neo", "mono_internvl") if name in config.name)]
    definition = define(config, configured_tokenizer(config).vocab_size)
    rng, rules = np.random.default_rng(0), {rule.name: rule for rule in layout.tensors(definition)}
    folder = Path(str(config.init_from))
    folder.mkdir(parents=True, exist_ok=True)
    infos = [TensorInfo(rule.name, rule.shape, np.dtype(np.float32)) for rule in rules.values()]
    write_tensors(folder, infos, lambda name: rng.normal(0, 0.02, rules[name].shape).astype(np.float32))
    (folder / "config.json").write_text(json.dumps(layout.config_json(config, definition.vocab_size)))
