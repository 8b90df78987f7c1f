"""The memory of evaluators: what is compiled, and what stays on the devices beside it."""

import json
from types import SimpleNamespace

import pytest

from solo.cli import main
from solo.config import load_config
from solo.data.store.prepare import prepare
from solo.machines import parse_machine
from solo.model.parameters import define
from solo.planning.evaluation import forecast_evaluators
from solo.planning.memory import hand_count
from solo.planning.rows import stage_rows
from tests.tiny import MODEL, tiny_config

SMALL = "tests/planning/golden/small.yaml"
# One layer and few slots: little to compile.
SETTINGS = [
    "model.layers=1",
    "model.scan_layers=false",
    "mesh.fsdp=4",
    "model.attention_implementation=dense",
    "stages.0.patch_slots=24",
    "stages.0.text_slots=16",
    "stages.0.target_slots=8",
]
TASKS = {"first": {"source": "pairs", "batch_rows": 6}, "second": {"source": "pairs", "batch_rows": 8}}


def small(*overrides: str, **evaluation):
    return load_config(SMALL, [*SETTINGS, f"evaluation={json.dumps(evaluation)}", *overrides])


def forecasts(config, devices: int = 8):
    stage, machine = config.stages[0], parse_machine(f"cpu-{devices}", 1)
    rows = stage_rows(config, stage)
    definition = define(config, rows.vocab_size or config.model.vocab_size)
    by_hand = hand_count(config, stage, definition, rows.shape, devices)
    found = SimpleNamespace(stage=stage, rows=rows, definition=definition, by_hand=by_hand)
    said = []
    return forecast_evaluators(config, machine, [found], report=said.append), by_hand, said


def test_the_programs_hold_parameters_cache_and_batch_beside_the_state() -> None:
    found, by_hand, said = forecasts(small(tasks=TASKS))
    first, second = found
    assert [line.split()[2] for line in said] == ["first", "second"]
    # 6 rows are filled up to 8; both evaluators have the same programs.
    assert (first.rows, first.patch_slots, first.text_slots, first.new_tokens) == (8, 24, 16, 16)
    assert first.programs is second.programs
    assert first.kept == by_hand.arguments - by_hand.parameters
    assert first.kept > by_hand.optimizer > by_hand.parameters
    decode = {program.name: program for program in first.programs}["decode"]
    # Two rows of 24 + 32 slots, one of two key heads of 128: keys and values, bfloat16.
    cache = 2 * 2 * 56 * 1 * 128 * 2
    logits = 2 * 2048 * 4
    assert decode.arguments == pytest.approx(by_hand.parameters + cache + logits, rel=0.01)
    # The device's own shards in bfloat16, at most; gathered over fsdp they would take four times that.
    assert decode.temporaries < by_hand.parameters / 2
    assert first.needed == first.kept + max(program.total for program in first.programs)
    assert first.fits


def test_every_kind_of_evaluator_is_compiled() -> None:
    config = small(
        losses={"loss": {"source": "pairs"}},
        samples={"look": {"source": "pairs", "max_new_tokens": 4}},
        integration_rate={"rate": {"source": "pairs", "documents": 16, "tokens": 128}},
    )
    found, by_hand, _ = forecasts(config)
    programs = {(each.kind, each.name): [program.name for program in each.programs] for each in found}
    assert programs == {
        ("held_out", "loss"): ["forward"],
        ("samples", "look"): ["prefill", "decode"],
        ("integration_rate", "rate"): ["forward"],
    }
    loss, look, rate = found
    assert look.rows == 4
    state = by_hand.arguments - by_hand.parameters
    assert loss.kept == look.kept == state
    # 2 batches of 8 rows; of each row the states of 8 patches and 8 tokens of width 512, one layer, bfloat16.
    layer = 8 * 16 * 512 * 2
    assert rate.kept == state + layer // 4 + 2 * layer


def test_prepared_data_says_how_large_prompts_are(tmp_path, tiny_tokenizer) -> None:
    tiny_tokenizer.save(tmp_path)
    config = tiny_config(
        data={
            "folder": str(tmp_path / "data"),
            "sources": {"digits": {"reader": "digits", "limit": 5}},
            "tokenizer": {"path": str(tmp_path / "tokenizer.model")},
        },
        model={**MODEL, "layers": 1, "scan_layers": False},
        mesh={"fsdp": 1},
        evaluation={"tasks": {"naming": {"source": "digits", "limit": 3, "batch_rows": 1}}},
    )
    prepared = prepare(config)
    patches, text, _ = prepared.sources["digits"].index.counts(config.image)[:3].max(axis=0)
    (found,), _, _ = forecasts(config, devices=1)
    assert patches <= found.patch_slots <= 1.5 * patches + 8
    assert text <= found.text_slots <= 1.5 * text + 8
    assert found.source.startswith("the prepared data of")


def test_evaluation_that_does_not_fit_is_refused_with_status_2(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("solo.planning.evaluation.memory_limit", lambda machine: 2**20)
    evaluation = json.dumps({"losses": {"loss": {"source": "pairs"}}})
    command = ["plan", SMALL, *SETTINGS, f"evaluation={evaluation}", "--on", "cpu-8", "--json", str(tmp_path / "x")]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "evaluation 'loss' does not fit: it needs" in said.err
    assert "loss: forward" in said.out
    recipe = json.loads((tmp_path / "x").read_text())
    assert not recipe["recipe"]["fits"]
    (line,) = recipe["evaluation"]
    assert (line["kind"], line["task"], line["fits"]) == ("held_out", "loss", False)
    assert line["needed"] == line["kept"] + line["programs"][0]["total"]
