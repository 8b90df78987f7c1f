"""The schema refuses unknown keys, says where and what was expected, and round-trips exactly."""

import math
import typing
from pathlib import Path

import pytest
import yaml

from solo.config import (
    Config,
    ConfigError,
    Section,
    differences,
    dump_config,
    identity,
    keys_deciding,
    load_config,
    parse_config,
)
from solo.config.base import Decides
from solo.config.compare import what_decides
from solo.config.yaml_text import parse_yaml
from solo.scaling.sweep.spec import load_spec

MINIMAL = {
    "name": "tiny",
    "data": {"sources": {"digits": {"reader": "digits"}}},
    "model": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 64},
    "stages": [
        {"name": "one", "mixture": {"digits": 1.0}, "steps": 2, "batch_rows": 2, "optimizer": {"learning_rate": 1e-3}}
    ],
}


def write(path: Path, data: dict) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_resolved_config_alone_gives_the_same_config(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "a.yaml", MINIMAL), ["seed=7", "stages.0.optimizer.beta2=0.99"])
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config
    assert config.seed == 7
    assert config.stages[0].optimizer.beta2 == 0.99


@pytest.mark.parametrize("name", ["8e8062709994", "1e5", "012345678901", "123456789012", "1.5e3", "null", "0x1f"])
def test_names_that_look_like_numbers_are_written_as_text(tmp_path: Path, name: str) -> None:
    """One of 280 ids of a sweep's runs has a single letter, which is an e between digits."""
    config = parse_config({**MINIMAL, "name": name})
    (tmp_path / "written.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "written.yaml") == config


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "dots.", "a/b", "a b", "ä", "x" * 101])
def test_names_that_are_no_folder_names_everywhere_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: .*also that of its folder: letters, digits, '\.', '_' and '-'"):
        parse_config({**MINIMAL, "name": name})
    assert parse_config({**MINIMAL, "name": "v1.5-b_" + "x" * 93}).name.startswith("v1.5")


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL)
    child = {"extends": "base.yaml", "name": "child", "model": {"layers": 5}}
    config = load_config(write(tmp_path / "child.yaml", child))
    assert (config.name, config.model.layers, config.model.width) == ("child", 5, 32)


def test_a_source_may_be_a_path(tmp_path: Path) -> None:
    """A path stands for the options of a source, which files that extend this one and overrides can change."""
    sources = {
        "digits": "shards/*.tar",
        "chats": ["a.json", "b.json"],
        "lines": {"reader": "lines", "options": {"a": 1}},
    }
    parent = {**MINIMAL, "data": {"sources": sources}}
    write(tmp_path / "parent.yaml", parent)
    child = {"extends": "parent.yaml", "data": {"sources": {"digits": {"limit": 5}, "lines": "c.txt"}}}
    config = load_config(write(tmp_path / "child.yaml", child), ["data.sources.chats.options.images=pictures"])
    found = {
        name: source.model_dump(include={"reader", "options", "limit"}) for name, source in config.data.sources.items()
    }
    assert found == {
        "digits": {"reader": "auto", "options": {"path": "shards/*.tar"}, "limit": 5},
        "chats": {"reader": "auto", "options": {"path": ["a.json", "b.json"], "images": "pictures"}, "limit": None},
        "lines": {"reader": "auto", "options": {"path": "c.txt"}, "limit": None},
    }
    assert load_config(write(tmp_path / "again.yaml", yaml.safe_load(dump_config(config)))) == config


def test_extending_oneself_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "loop.yaml", {**MINIMAL, "extends": "loop.yaml"})
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=64", r"model\.widht: unknown key; did you mean 'width'"),
        ("stages.0.optimizer.learning_rat=1", r"stages\.0\.optimizer\.learning_rat: .*did you mean 'learning_rate'"),
        ("data.sources.digits.raeder=x", r"data\.sources\.digits\.raeder: unknown key; did you mean 'reader'"),
        ("model.width=wide", r'model\.width: .*integer.*found "wide" \(str\)'),
        ("model.width=1.5", r"model\.width: .*integer.*found 1\.5"),
        ("model.width=true", r"model\.width: .*integer.*found true"),
        ("seed=[1]", r"seed: .*integer"),
        ("model.heads=3", r"model: heads 3 is not a multiple of kv_heads 2"),
        ("model.remat=some", r"model\.remat: .*'none', 'dots', .*'full'.*found \"some\""),
        ("stages.0.mixture={digit: 1.0}", r"stage 'one', mixture: no source 'digit'.*did you mean 'digits'"),
        ("stages.0.mixture.digits=.nan", r"stages\.0\.mixture\.digits: input should be a finite number; found NaN"),
        ("stages.0.mixture.digits=.inf", r"stages\.0\.mixture\.digits: input should be a finite number"),
        ("stages.0.mixture.digits=-1", r"stages\.0\.mixture\.digits: input should be greater than or equal to 0"),
        ("stages.0.max_epochs=many", r'stages\.0\.max_epochs: input should be a valid number; found "many"'),
        ("stages.0.max_epochs={digits: 0}", r"stages\.0\.max_epochs\.digits: input should be greater than 0"),
        ("stages.0.image={max_side: 100}", r"stages\.0\.image: max_side 100 is not a multiple of patch_size 32"),
        ("stages.0.image={max_sid: 64}", r"stages\.0\.image\.max_sid: unknown key; did you mean 'max_side'"),
        ("stages.0.max_tiles=4", r"stages\.0\.max_tiles: this key is named stages\.0\.image\.max_tiles now"),
        ("stages.0.epochs=1.0", r"exactly one of steps, epochs and tokens"),
        ("stages.3.steps=1", r"there is no such place"),
        ("seed", r"expected key\.path=value"),
        ("model.head_dim=0", r"head_dim: .*greater than or equal to 1"),
        ("stages.0.optimizer.learning_rate=.inf", r"learning_rate: .*finite"),
        ("stages.0.learning_rate_scale={'*': -1.0}", r"learning_rate_scale.*greater than or equal to 0"),
        ("image.std=[0.5, 0.0, 0.5]", r"image\.std\.1: .*greater than 0"),
        ("stages.0.batch_rows=010", r'batch_rows: .*found "010"'),
        ("stages.0.batch_rows=1:30", r'batch_rows: .*found "1:30"'),
        ("stages.0.mixture={digits: 1.0, digits: 2.0}", r"key 'digits' is set twice"),
    ],
)
def test_a_wrong_value_says_where_and_what_was_expected(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "a.yaml", MINIMAL)
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


TIME, ROW, COLUMN = ({"axis": axis, "width": 4} for axis in ("time", "row", "column"))
GRID = {"projection": "grid"}
GRID_NORM = {"norm": "grid"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"head_parts": [TIME]}, r"main projection add up to 4; head_dim is 8"),
        ({"head_parts": [ROW, TIME]}, r"axes row, time; time comes first"),
        ({"head_parts": [TIME, TIME]}, r"axes time, time; .* at most once"),
        ({"head_parts": [TIME, ROW | GRID, COLUMN]}, r"main projection come before"),
        ({"head_parts": [TIME | GRID, ROW]}, r"main projection come before"),
        ({"head_parts": [TIME, ROW | GRID_NORM]}, r"norm: grid, but qk_norm is none"),
        ({"head_parts": [TIME | GRID_NORM, ROW, COLUMN | GRID_NORM], "head_dim": 12, "qk_norm": "rms"}, r"neighbours"),
        ({"head_parts": [TIME, ROW | GRID_NORM, COLUMN | GRID | GRID_NORM], "qk_norm": "rms"}, r"the same projection"),
        ({"head_parts": [TIME, ROW], "rope_sections": [0, 2, 2]}, r"leave out rope_sections"),
        ({"head_parts": [TIME, ROW], "rope_fraction": 0.5}, r"leave out rope_fraction"),
        ({"value_dim": 9}, r"value_dim 9 is above the width of a query, 8"),
        ({"head_parts": [{"axis": "time", "width": 5}, ROW]}, r"head_parts\.0\.width: .*multiple of 2"),
        ({"head_parts": [TIME, ROW]}, r"sequence\.positions is text, but the model's heads need separate"),
        ({"rope_sections": [0, 2, 2]}, r"sequence\.positions is text, but the model's heads need grid"),
    ],
)
def test_heads_that_do_not_fit_together_are_refused(tmp_path: Path, model: dict, message: str) -> None:
    path = write(tmp_path / "a.yaml", MINIMAL | {"model": MINIMAL["model"] | model})
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_the_widths_of_heads_in_parts(tmp_path: Path) -> None:
    parts = {"head_parts": [TIME | {"width": 8}, ROW | GRID, COLUMN | GRID], "value_dim": 6}
    config = MINIMAL | {"model": MINIMAL["model"] | parts, "sequence": {"positions": "separate"}}
    model = load_config(write(tmp_path / "a.yaml", config)).model
    assert (model.dim_per_head, model.dim_per_grid, model.dim_per_query, model.dim_per_value) == (8, 8, 16, 6)
    assert model.scale == 8**-0.5
    assert model.model_copy(update={"attention_scale": 0.3}).scale == 0.3


def test_every_fault_is_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "a.yaml", MINIMAL), ["model.widht=64", "seed=x"])
    assert "widht" in str(caught.value)
    assert "seed" in str(caught.value)


def test_a_missing_file_and_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read config"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"name: \xbd")
    with pytest.raises(ConfigError, match=r"cannot read config .*binary\.yaml: it is not UTF-8"):
        load_config(tmp_path / "binary.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: caf\xe9", r"a\.yaml: it is not UTF-8"),
        (b"name: a\nmodel: {width: 8}\nmodel: {layers: 2}", r"key 'model' is set twice, first in line 2(.|\n)*line 3"),
        (b"model: {width: 8, 'width': 9}", r"key 'width' is set twice"),
        (b"extends:", r"a\.yaml: extends: expected a path or a list of paths, found null"),
        (b"extends: [b.yaml, 3]", r'extends: .* found \["b\.yaml", 3\]'),
        (b"model: &m {width: *m}", r"a\.yaml: only mappings.*Circular"),
        (b"model: !!set {width}", r"a\.yaml: only mappings.*set"),
        (b"name: a\n---\nname: b", r"single document"),
    ],
)
def test_a_file_that_is_not_plain_yaml_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "a.yaml")


def test_values_are_read_as_in_yaml_1_2() -> None:
    text = "[1e-3, 1.5E3, .5, -1.0, -.inf, 12, 1_000, 0x1f, 0, 010, 1:30, 2026-01-01, 1e5x, true, null]"
    expected = [1e-3, 1500.0, 0.5, -1.0, -math.inf, 12, 1000, 31, 0, "010", "1:30", "2026-01-01", "1e5x", True, None]
    assert parse_yaml(text, "text") == expected


def test_merged_keys_may_be_overridden() -> None:
    text = "a: {b: &b {width: 1, layers: 2}, c: &c {<<: *b, width: 3}}\nd: {<<: *c, layers: 4}\n1: 5"
    assert parse_yaml(text, "text") == {
        "a": {"b": {"width": 1, "layers": 2}, "c": {"width": 3, "layers": 2}},
        "d": {"width": 3, "layers": 4},
        "1": 5,
    }


@pytest.mark.parametrize("name", ["1e-3", "3E5", "010", "1:30", "2026-01-01", "0x1f", "null", "1_0"])
def test_strings_that_look_like_numbers_survive_a_resolved_config(tmp_path: Path, name: str) -> None:
    data = {**MINIMAL, "sequence": {"system": name}}
    (tmp_path / "resolved.yaml").write_text(dump_config(parse_config(data)))
    assert load_config(tmp_path / "resolved.yaml").sequence.system == name


def test_floats_may_be_written_with_an_exponent_alone(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "a.yaml", MINIMAL), ["stages.0.optimizer.learning_rate=3e-4"])
    assert config.stages[0].optimizer.learning_rate == 3e-4


def test_a_config_cannot_be_changed() -> None:
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_a_list_is_not_called_too_short_because_its_items_are_invalid() -> None:
    """pydantic counts valid items only; the value has one fault."""
    config = load_config("configs/quickstart.yaml").model_dump(mode="json")
    config["model"]["quantization"] = {"kind": "int8", "components": ["moe"]}
    with pytest.raises(ConfigError) as found:
        parse_config(config)
    assert str(found.value).splitlines()[1:] == [
        "  model.quantization.components.0: input should be 'ffn' or 'attention'; found \"moe\" (str)"
    ]
    config["model"]["quantization"]["components"] = []
    with pytest.raises(ConfigError, match=r"components: .*at least 1 item"):
        parse_config(config)


FILES = sorted(Path("configs").rglob("*.yaml"))
SWEEPS = [path for path in FILES if path.parent.name == "sweeps" and "base" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", SWEEPS, ids=str)
def test_every_shipped_sweep_is_valid(path: Path) -> None:
    assert load_spec(path).name == path.stem
    assert load_spec(path).base in map(str, FILES)


@pytest.mark.parametrize("path", [path for path in FILES if path not in SWEEPS], ids=str)
def test_every_shipped_config_is_valid(path: Path) -> None:
    """But for what its source does not say: a recipe names that, and is valid once it is set."""
    try:
        config = load_config(path)
    except ConfigError as error:
        assert path.parent.name == "recipes"
        title, *keys = str(error).splitlines()
        assert "has values that its source does not state" in title
        settings = {"learning_rate": "1.0e-4", "steps": "10", "batch_rows": "8"}
        values = [key.strip().removesuffix("=...") for key in keys]
        config = load_config(path, [f"{key}={settings[key.rpartition('.')[2]]}" for key in values])
    assert isinstance(config, Config)
    assert (path.parent.name == "models") == (not config.stages)


def test_a_model_without_a_run_says_so() -> None:
    with pytest.raises(ConfigError, match=r"'solo_30m' describes a model but no run: data.sources and stages"):
        load_config("configs/models/solo_30m.yaml").check_runnable()


def test_unknown_values_are_named_with_their_keys() -> None:
    with pytest.raises(ConfigError, match=r"stages\.1\.optimizer\.learning_rate=\.\.\."):
        load_config("configs/recipes/mono_internvl_2b_pretrain.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.attention=dense", r"model\.attention: .* named model\.attention_implementation now"),
        ("image.attention=causal", r"image\.attention: .* named image\.mask now"),
        ("stages.0.optimizer.decayed=all", r"decayed: .* named stages\.0\.optimizer\.weight_decay_mask now"),
        ("sequence.window=4096", r"sliding_window \(which counts the slot itself: add 1\) now"),
        ("model.remat=everything", "'everything' is named 'full' now"),
        ("model.experts.ffn=learned", "'learned' is named 'moe' now"),
        ("stages.0.mixture_by=positions", "'positions' is named 'tokens' now"),
    ],
)
def test_old_names_are_refused_with_the_new_one(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("configs/quickstart.yaml", [override])


def sections(kind: type[Section]) -> set[type[Section]]:
    """The section and all sections below it, found by their annotations."""
    found, todo = {kind}, list(kind.model_fields.values())
    while todo:
        for part in [annotation := todo.pop().annotation, *walk(annotation)]:
            if isinstance(part, type) and issubclass(part, Section) and part not in found:
                found.add(part)
                todo += part.model_fields.values()
    return found


def walk(annotation: object) -> list[object]:
    parts = typing.get_args(annotation)
    return [*parts, *(inner for part in parts for inner in walk(part))]


def test_every_key_says_what_it_decides() -> None:
    kinds = sections(Config)
    assert {"RopeScalingConfig", "TaskConfig", "SourceConfig", "OptimizerConfig"} <= {kind.__name__ for kind in kinds}
    known = set(typing.get_args(Decides))
    for kind in kinds:
        assert "keys_decide" in vars(kind), f"{kind.__name__} inherits what its keys decide"
        for key in kind.model_fields:
            decided = what_decides(kind, key)
            assert decided, f"{kind.__name__}.{key}"
            assert decided <= known, f"{kind.__name__}.{key}"
            assert decided == {"nothing"} or "nothing" not in decided, f"{kind.__name__}.{key}"


@pytest.mark.parametrize(
    ("override", "levels"),
    [
        ("model.width=64", "model result evaluation"),
        ("model.moe.count=4", "model result evaluation"),
        ("model.rope_scaling={kind: linear, factor: 2, trained_length: 64}", "model result evaluation"),
        ("image.patch_size=16", "model data result evaluation"),
        ("image.mean=[0.5, 0.5, 0.5]", "model result evaluation"),
        ("sequence.sliding_window=8", "model data result evaluation"),
        ("data.sources.digits.limit=10", "data result evaluation"),
        ("data.sources.digits.options={train: false}", "data result evaluation"),
        ("data.tokenizer.vocab_size=512", "data result evaluation"),
        ("image.mask=prefix", "data result evaluation"),
        ("stages.0.batch_rows=4", "data result evaluation"),
        ("seed=1", "data result evaluation"),
        ("stages.0.optimizer.beta2=0.9", "result evaluation"),
        ("stages.0.train=[layers/*]", "result evaluation"),
        ("model.compute_dtype=bfloat16", "result evaluation"),
        ("model.init_std=0.01", "result evaluation"),
        ("safety.policy=skip", ""),
        ("safety.spike_factor=3.0", "result evaluation"),
        ("evaluation.losses={held: {source: digits}}", "evaluation"),
        ("evaluation.tasks={read: {source: digits}}", "evaluation"),
        ("name=other", ""),
        ("folder=elsewhere", ""),
        ("data.folder=elsewhere", ""),
        ("data.worker_processes=2", ""),
        ("mesh.tensor=2", ""),
        ("compiler_options={xla_flag: true}", ""),
        ("model.attention_tile=[128, 128]", ""),
        ("model.attention_implementation=blocks", ""),
        ("model.remat=full", ""),
        ("checkpoint.every_steps=7", ""),
        ("stages.0.loss.chunk_size=64", ""),
        ("evaluation.report_examples=3", ""),
        ("image.placeholder_token=<image>", ""),
    ],
)
def test_a_key_changes_the_identity_at_the_levels_that_it_decides(tmp_path: Path, override: str, levels: str) -> None:
    path = write(tmp_path / "a.yaml", MINIMAL)
    before, after = load_config(path), load_config(path, [override])
    all_levels = ("model", "data", "result", "evaluation")
    changed = [level for level in all_levels if identity(before, level) != identity(after, level)]
    assert changed == levels.split()
    found = differences(before, after)
    assert found
    assert [level for level in all_levels if any(each.decides_at(level) for each in found)] == levels.split()


def test_differences_name_every_key_and_both_values() -> None:
    before = parse_config(MINIMAL)
    stages = [MINIMAL["stages"][0], {**MINIMAL["stages"][0], "name": "two"}]
    after = parse_config({**MINIMAL, "stages": stages, "compiler_options": {"xla_a": 1}})
    found = {each.key: (each.old, each.new) for each in differences(before, after)}
    assert found["compiler_options.xla_a"] == (None, 1)
    assert found["stages.1.name"] == (None, "two")
    assert all(key.startswith("stages.1.") for key in found.keys() - {"compiler_options.xla_a"})
    assert differences(before, before) == []
    assert keys_deciding(type(before.image), "model") == ["patch_size", "patch_order", "markers", "mean", "std"]
