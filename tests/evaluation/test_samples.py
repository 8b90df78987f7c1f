"""Sample answers: what is asked, what a line holds, and the picture of an example."""

import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from solo.config import ConfigError
from solo.config.evaluators import SamplesConfig
from solo.data.readers import read
from solo.data.record import Image, Record, Turn, encode_png
from solo.evaluation.report import render
from solo.evaluation.samples import changes_shown, picture, prompt_text, sample_answers, samples_shown
from solo.evaluation.tasks import split_answer
from tests.evaluation.test_tasks import Source
from tests.tiny import picture as noise
from tests.tiny import tiny_config, tiny_monolith

IMAGE = encode_png(noise(12, 8, 0))


def settings(**keys) -> SamplesConfig:
    return SamplesConfig(source="s", **keys)


def test_a_line_holds_prompts_references_and_answers(tiny_tokenizer) -> None:
    records = list(read("digits", {"split": "held_out"}, 6))
    records.insert(1, Record("open", (Turn("user", (IMAGE, "what is this?")),)))
    model, done = tiny_monolith(tiny_tokenizer), []
    line = sample_answers(
        model, "look", settings(count=3, max_new_tokens=5), {"s": Source(records)}, lambda *counts: done.append(counts)
    )
    prompt, reference = split_answer(records[0].turns)
    assert [example["id"] for example in line["examples"]] == [record.id for record in records[:3]]
    first, asked = line["examples"][:2]
    assert first["reference"] == reference
    assert [example["answer"] for example in line["examples"]] == model.generate(
        [prompt, records[1].turns, split_answer(records[2].turns)[0]], 5
    )
    assert (asked["prompt"], asked["reference"]) == ("<image> what is this?", "")
    assert done == [(3, 3)]


def test_a_source_without_records_is_refused(tiny_tokenizer) -> None:
    model = tiny_monolith(tiny_tokenizer)
    with pytest.raises(ConfigError, match="samples 'look': source 's' has no records"):
        sample_answers(model, "look", settings(), {"s": Source([])})
    with pytest.raises(ConfigError, match="samples 'look': source 's' is not prepared"):
        sample_answers(model, "look", settings(), {})


def test_a_prompt_as_text_names_the_speakers_if_there_are_several() -> None:
    turns = (Turn("system", ("brief",)), Turn("user", (IMAGE, "what?")), Turn("assistant", ()))
    assert prompt_text(turns) == "system: brief\nuser: <image> what?"
    assert prompt_text(turns[1:2]) == "<image> what?"
    assert prompt_text((Turn("text", (IMAGE,)),)) == "<image>"


def test_a_picture_shows_the_first_images_and_is_bounded() -> None:
    turns = (Turn("user", (IMAGE, "and", encode_png(noise(20, 30, 1)))), Turn("user", ()))
    shown = np.asarray(PillowImage.open(io.BytesIO(picture(turns))))
    assert shown.shape == (30, 12 + 4 + 20, 3)
    np.testing.assert_array_equal(shown[:8, :12], np.asarray(noise(12, 8, 0)))
    np.testing.assert_array_equal(shown[:, 16:], np.asarray(noise(20, 30, 1)))
    large = (Turn("user", (encode_png(noise(900, 300, 2)),) * 9),)
    assert PillowImage.open(io.BytesIO(picture(large, side=200))).size == (200, 17)
    assert picture((Turn("user", ("no image",)),)) is None
    assert picture((Turn("user", (Image(b"broken"),)),)) is None


def test_changes_are_the_first_the_last_and_some_between() -> None:
    lines = [{"kind": "samples", "task": "look", "step": step, "examples": []} for step in (10, 20, 30, 20, 40)]
    lines += [{"kind": "samples", "task": "other", "step": 50}, {"kind": "train", "step": 60}]
    lines += [{"kind": "samples", "task": "look", "weights": "ema", "step": 45}]
    assert [line["step"] for line in changes_shown(lines, "look", "trained")] == [10, 20, 30, 40]
    assert [line["step"] for line in changes_shown(lines, "look", "trained", most=3)] == [10, 30, 40]
    assert [line["step"] for line in changes_shown(lines, "look", "ema")] == [45]


def test_the_report_shows_how_answers_change(tiny_tokenizer) -> None:
    evaluation = {"samples": {"look": {"source": "digits", "count": 2}}}
    config, records = tiny_config(evaluation=evaluation), list(read("digits", {"split": "held_out"}, 3))
    said = {5: ("a <b>", ""), 9: ("a four", "a nine")}
    lines = [
        {
            "kind": "samples",
            "task": "look",
            "step": step,
            "examples": [{"id": record.id, "answer": answer} for record, answer in zip(records, answers, strict=False)],
        }
        for step, answers in said.items()
    ]
    (shown,) = samples_shown(lines, config.evaluation, {"digits": Source(records)})
    assert shown.answers == said
    page = render(config, tiny_monolith(tiny_tokenizer).definition, [], lines, [shown])
    assert "Sample answers from step 5 to step 9." in page
    assert "<dt>5</dt><dd>a &lt;b&gt;</dd><dt>9</dt><dd>a four</dd>" in page
    assert '<dt>5</dt><dd><span class="none">nothing</span></dd><dt>9</dt><dd>a nine</dd>' in page
    assert page.count("data:image/png;base64,") == 2
    assert samples_shown([], config.evaluation, {}) == []
