"""Tasks ask the right thing and score it; the model is a stand-in, but for one test."""

import dataclasses
import io
from dataclasses import dataclass, field

import numpy as np
import pytest
from rich.console import Console

from solo.config import ConfigError, EvaluationConfig
from solo.data.readers import read
from solo.data.record import Image, Record, Turn, encode_png
from solo.evaluation.results import print_results, task_fields, task_results
from solo.evaluation.tasks import TaskResult, blank_images, evaluate, split_answer
from tests.tiny import picture, tiny_monolith

IMAGE = encode_png(picture(12, 8, 0))
OTHER = encode_png(picture(9, 30, 1))


@dataclass
class Source:
    """Records by number."""

    records: list[Record]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, number: int) -> Record:
        return self.records[number]


def captions(*texts: str) -> Source:
    images = [encode_png(picture(8, 8, number)) for number in range(len(texts))]
    return Source([Record(f"r{i}", (Turn("text", (images[i], text)),)) for i, text in enumerate(texts)])


@dataclass
class Knowing:
    """Answers from a table of image bytes, and "grey" for what is not in it."""

    answers: dict[bytes, str]
    calls: list = field(default_factory=list)

    def generate(self, conversations, max_new_tokens, *, batch_rows, progress=None):
        self.calls.append((len(conversations), max_new_tokens, batch_rows))
        if progress:
            progress(len(conversations), len(conversations))
        return [self.answers.get(turns[-1].content[0].data, "grey") for turns in conversations]


def config(**task) -> EvaluationConfig:
    return EvaluationConfig(tasks={"colours": {"source": "captions", **task}}, report_examples=2)


# --------------------------------------------------------------------------------- what is asked


def test_the_last_assistant_turn_is_the_answer() -> None:
    turns = (
        Turn("system", ("brief",)),
        Turn("user", (IMAGE, "what?")),
        Turn("assistant", ("a cat",)),
        Turn("user", ("colour?",)),
        Turn("assistant", ("bl", "ack")),
        Turn("user", ("thanks",)),
    )
    assert split_answer(turns) == ((*turns[:4], Turn("assistant", ())), "black")


def test_a_caption_is_the_text_after_the_last_image() -> None:
    turns = (Turn("text", ("before", IMAGE, "between", OTHER, " after", " all")),)
    assert split_answer(turns) == ((Turn("text", ("before", IMAGE, "between", OTHER)),), " after all")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((Turn("text", ("no image",)),), "no answer to ask for"),
        ((Turn("user", (IMAGE, "what?")),), "no answer to ask for"),
        ((Turn("text", ("text", IMAGE)),), "not plain text"),
        ((Turn("user", ("draw",)), Turn("assistant", ("here", IMAGE))), "not plain text"),
    ],
)
def test_records_without_an_answer(turns, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        split_answer(turns)


def test_blanked_images_keep_size_and_place_but_no_pixels() -> None:
    turns = (Turn("user", ("a", IMAGE, OTHER, "b")), Turn("assistant", ()))
    blanked = blank_images(turns)
    first, second = (part for part in blanked[0].content if isinstance(part, Image))
    assert [part if isinstance(part, str) else None for part in blanked[0].content] == ["a", None, None, "b"]
    assert (first.size(), second.size()) == ((12, 8), (9, 30))
    assert all(len(np.unique(np.asarray(image.decode()))) == 1 for image in (first, second))
    assert blanked[1] == turns[1]


# -------------------------------------------------------------------------------- what comes out


def test_scores_blanked_scores_and_gain() -> None:
    source = captions("red", "grey", "blue", "green", "black")
    known = {record.images()[0].data: "red" if i == 0 else "blue" for i, record in enumerate(source.records) if i != 1}
    model = Knowing(known)
    seen = []
    task = config(blank_images=True, limit=4, max_new_tokens=3, batch_rows=7)
    (result,) = evaluate(model, task, {"captions": source}, lambda *done: seen.append(done))
    # Right: red, grey (not known, so "grey"), blue. Blanked: grey alone.
    assert (result.score, result.score_blank, result.gain, result.count) == (75.0, 25.0, 50.0, 4)
    assert [(e.id, e.reference, e.answer, e.blanked) for e in result.examples] == [
        ("r0", "red", "red", "grey"),
        ("r1", "grey", "grey", "grey"),
    ]
    assert model.calls == [(4, 3, 7), (4, 3, 7)]
    assert seen == [("colours", 4, 8), ("colours", 8, 8)]


def test_gain_is_positive_where_images_lower_the_error() -> None:
    source = captions("grew", "blue")
    model = Knowing({source.records[1].images()[0].data: "blue"})
    task = config(blank_images=True, metric="character_error_rate")
    (result,) = evaluate(model, task, {"captions": source})
    assert (result.score, result.score_blank, result.gain) == (12.5, 62.5, 50.0)


def test_without_blanking_there_is_no_gain() -> None:
    (result,) = evaluate(Knowing({}), config(), {"captions": captions("grey")})
    assert (result.score, result.score_blank, result.gain) == (100.0, None, None)
    assert result.examples[0].blanked is None


def test_faults_name_task_source_and_record() -> None:
    with pytest.raises(ConfigError, match="'colours': source 'captions' is not prepared"):
        evaluate(Knowing({}), config(), {"other": captions("red")})
    with pytest.raises(ConfigError, match="'colours': source 'captions' has no records"):
        evaluate(Knowing({}), config(), {"captions": captions()})
    source = Source([captions("red").records[0], Record("r1", (Turn("text", ("words",)),))])
    with pytest.raises(ConfigError, match="record 'r1' of source 'captions': it has no assistant turn"):
        evaluate(Knowing({}), config(), {"captions": source})


def test_results_and_their_answers_come_back_from_the_metrics() -> None:
    source = {"captions": captions("red", "grey", "blue")}
    task = config(blank_images=True, limit=3)
    (result,) = evaluate(Knowing({}), task, source)
    fields = task_fields(result)
    assert fields["answers"] == [["grey", "grey"]] * 2
    assert (fields["score"], fields["gain"], fields["examples"]) == (result.score, 0.0, 3)
    line = {"kind": "evaluation", "step": 90, "task": "colours", **fields, "timing": {"seconds": result.seconds}}
    lines = [{**line, "step": 80, "score": 0.0}, line, {**line, "step": 85}, {**line, "weights": "ema"}]
    assert task_results(lines, task, source) == [result, dataclasses.replace(result, weights="ema")]
    # A line of a task that the config no longer has, or without answers.
    assert task_results([{**line, "task": "other"}], task, source) == []
    del line["answers"]
    assert task_results([line], task, source) == [dataclasses.replace(result, examples=())]


def test_table() -> None:
    results = [
        TaskResult("scenes", "exact_match", 75.0, 25.0, 300, 3.5, ()),
        TaskResult("reading", "character_error_rate", 12.34, None, 64, 1.0, (), "ema"),
    ]
    file = io.StringIO()
    print_results(results, Console(file=file, width=100))
    for shown in ("scenes", "300", "75.0%", "25.0%", "+50.0", "12.3%", "characters wrong", "reading (ema)"):
        assert shown in file.getvalue()


def test_a_real_model_answers_digits(tiny_tokenizer) -> None:
    records = list(read("digits", {"split": "held_out"}, 5))
    model = tiny_monolith(tiny_tokenizer)
    task = EvaluationConfig(
        tasks={"digits": {"source": "d", "max_new_tokens": 5, "batch_rows": 8, "blank_images": True}}
    )
    (result,) = evaluate(model, task, {"d": Source(records)})
    prompts = [split_answer(record.turns)[0] for record in records]
    assert [example.answer for example in result.examples] == model.generate(prompts, 5)
    assert len({example.blanked for example in result.examples}) == 1
    assert result.count == 5
