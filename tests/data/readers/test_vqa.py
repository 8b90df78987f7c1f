"""Visual questions in the formats of their datasets."""

import json

import pytest

from solo.config import ConfigError
from solo.data.readers import open_reader, read
from solo.data.record import Record, Turn
from tests.data.readers.pictures import BLUE, RED, read_source, write

V2_QUESTIONS = {
    "info": {},
    "data_type": "mscoco",
    "data_subtype": "train2014",
    "questions": [
        {"image_id": 9, "question": "What is red?", "question_id": 900},
        {"image_id": 25, "question": "What is blue?", "question_id": 2500},
        {"image_id": 9, "question": "How many?", "question_id": 901},
        {"image_id": 30, "question": "Where?", "question_id": 3000},
        {"image_id": 9, "question": " ", "question_id": 902},
    ],
}


def annotation(question: int, *answers: str, **more: object) -> dict[str, object]:
    return {"question_id": question, "answers": [{"answer": a, "answer_id": 1} for a in answers], **more}


V2_ANSWERS = {
    "annotations": [
        annotation(900, "wall", "the wall", "wall", multiple_choice_answer="wall", question_type="what"),
        annotation(901, "2", "two", "two"),  # OK-VQA has no multiple_choice_answer
        annotation(2500, "sea", multiple_choice_answer="sea"),
        annotation(7, "?"),
        annotation(902, "x"),
    ]
}


@pytest.fixture
def v2(tmp_path):
    # An image of 2014 and one under its name of 2017.
    write(tmp_path / "images", {"COCO_train2014_000000000009.jpg": RED, "000000000025.jpg": BLUE})
    write(tmp_path, {"questions.json": json.dumps(V2_QUESTIONS), "answers.json": json.dumps(V2_ANSWERS)})
    names = {"path": "questions.json", "annotations": "answers.json", "images": "images"}
    return {option: str(tmp_path / name) for option, name in names.items()}


def test_vqa_v2(v2):
    records, unreadable, ignored = read_source("vqa", **v2)
    assert records == {
        "900": (RED, "\n", "What is red?", "wall"),
        "2500": (BLUE, "\n", "What is blue?", "sea"),
        "901": (RED, "\n", "How many?", "two"),
    }
    assert unreadable == {
        "3000": "it has no answer",
        "902": "'question' must be a text, not ' '",
        "7": "no question has the id of this answer",
    }
    assert not ignored
    first = next(e for e in read("vqa", {**v2, "instruction": " In a word."}) if isinstance(e, Record))
    assert first.turns == (Turn("user", (RED, "\n", "What is red? In a word.")), Turn("assistant", ("wall",)))
    assert read_source("vqa", **v2, answers="all")[0]["901"][-1] == "two, 2"
    assert read_source("vqa", **v2, image_name="COCO_train2014_{image_id:012d}.jpg")[1]["2500"].startswith(
        "the file does"
    )


def test_questions_of_an_image_as_turns(v2):
    records, unreadable, _ = read_source("vqa", **v2, per="image")
    assert records["900"] == (RED, "\n", "What is red?", "wall", "How many?", "two")
    assert list(records) == ["900", "2500"]
    assert list(unreadable) == ["3000", "902", "7"]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ({"7": {"imageId": "a", "question": "Q?", "answer": "yes", "fullAnswer": "Yes.", "types": {}}}, "yes"),  # GQA
        ({"data": [{"image_id": "a", "question": "Q?", "question_id": 7, "answers": ["b", "a", "a"]}]}, "a"),  # TextVQA
        (
            {"data": [{"image": "a.jpg", "questionId": 7, "question": "Q?", "answers": ["7"], "docId": 3}]},
            "7",
        ),  # DocVQA
        (
            [{"image": "a.jpg", "question": "Q?", "answers": [{"answer": "x", "answer_confidence": "yes"}]}],
            "x",
        ),  # VizWiz
        (
            [{"image_id": "a", "question": "Q?", "question_id": "7", "direct_answers": ["p", "p"], "choices": ["q"]}],
            "p",
        ),  # A-OKVQA
        ([{"id": 1, "qas": [{"qa_id": 7, "image_id": "a", "question": "Q?", "answer": 3}]}], "3"),  # Visual Genome
        (
            [{"question_id": 7, "image": "a.jpg", "question": "Q?", "answer": ["b", "b", "c"], "dataset": "vqa"}],
            "b",
        ),  # BLIP
    ],
)
def test_other_datasets(tmp_path, content, answer):
    write(tmp_path, {"a.jpg": RED, "q.json": json.dumps(content)})
    records, unreadable, ignored = read_source("vqa", path=str(tmp_path / "q.json"), images=str(tmp_path))
    assert list(records.values()) == [(RED, "\n", "Q?", answer)]
    assert not unreadable
    assert not ignored


def test_unknown_keys_are_named_and_bad_questions_set_aside(tmp_path):
    questions = [{"image": "a.jpg", "question": "Q?", "answer": "A", "mood": "?"}, 3, {"question": "Q?", "answer": "A"}]
    write(tmp_path, {"a.jpg": RED, "q.json": json.dumps(questions)})
    records, unreadable, ignored = read_source("vqa", path=str(tmp_path / "q.json"), images=str(tmp_path))
    assert list(records) == ["q.json:1"]
    assert unreadable == {
        "q.json:2": "a question must be a mapping, not a number",
        "q.json:3": "it names no image; one of image, image_id, imageId, file_name must",
    }
    assert ignored == {"mood"}


def test_questions_in_lines(tmp_path):
    lines = [
        '{"image": "a.jpg", "question": "Q?", "answer": "A"}',
        "",
        '{"image": "a.jpg", "question": "R?", "answer": 2}',
    ]
    write(tmp_path, {"a.jpg": RED, "q.jsonl": "\n".join([*lines, "{"])})
    records, unreadable, _ = read_source("vqa", path=str(tmp_path / "q.jsonl"), images=str(tmp_path))
    assert records == {"q.jsonl:1": (RED, "\n", "Q?", "A"), "q.jsonl:3": (RED, "\n", "R?", "2")}
    assert list(unreadable) == ["q.jsonl:4"]
    assert "not valid JSON" in unreadable["q.jsonl:4"]


def test_parts(v2):
    parts = list(open_reader("vqa", v2).parts(2, 5))
    assert [len(part.span[0]) for part in parts] == [2, 2, 1]
    assert {part.files for part in parts} == {(v2["path"], v2["annotations"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "has questions without answers; set annotations"),
        ({"path": "annotations"}, "holds answers: set annotations to it"),
        ({"annotations": "path"}, "'annotations' must be a list, not"),
        ({"image_name": "{name}.jpg"}, "image_name '{name}.jpg' cannot name image 9: 'name'"),
    ],
)
def test_refused(v2, change, message):
    options = {**v2, **{key: v2.get(value, value) for key, value in change.items()}}
    with pytest.raises(ConfigError, match=message):
        list(read("vqa", options))


def test_images_of_visual_genome_without_questions(tmp_path):
    question = {"qa_id": "", "image_id": "a.png", "question": "Red?", "answer": "Yes."}
    found = [{"qas": [question]}, {"id": 2}, None, {"qas": 3}]
    write(tmp_path, {"q.json": json.dumps(found), "a.png": RED})
    records, unreadable, _ = read_source("vqa", path=str(tmp_path / "q.json"), images=str(tmp_path))
    assert records == {"q.json:1": (RED, "\n", "Red?", "Yes.")}
    assert len(unreadable) == 3


def test_answers_without_any_question(tmp_path):
    write(tmp_path, {"q.json": json.dumps({"questions": []}), "a.json": json.dumps(V2_ANSWERS)})
    found = list(read("vqa", {"path": str(tmp_path / "q.json"), "annotations": str(tmp_path / "a.json")}))
    assert len(found) == len(V2_ANSWERS["annotations"])
    assert {example.place.line for example in found} == {1}
