"""Every benchmark is read from a small file in each of its layouts, asked, judged and summed up."""

import base64
from dataclasses import replace

import datasets
import pytest

from solo.config import ConfigError
from solo.evaluation.benchmarks import choices, prompts
from solo.evaluation.benchmarks.benchmark import Benchmark
from solo.evaluation.benchmarks.definitions import BENCHMARKS, benchmark
from solo.evaluation.benchmarks.fields import Fields
from solo.evaluation.benchmarks.item import Item, Judged, Question
from tests.evaluation.benchmarks.layouts import PICTURES, encoded, parquet, tsv

PHRASE = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
TEN = ["dont"] * 4 + ["a cat"] * 6
LISTED = {"answer": "['Invoice 12', 'no. 12']"}
CHOICE = {"question": "Which?", "A": "kite", "B": "boat", "C": "None", "D": "", "answer": "B", "category": "things"}
OPTIONS = "\nA. kite\nB. boat\nC. None"
VLMEVALKIT = (
    "Question: Which?\nOptions:\nA. kite\nB. boat\nC. None\nPlease select the correct answer from the options above. \n"
)


def image(number=0):
    return {"image": encoded(number)}


# A row as VLMEvalKit writes it, and one as the Hugging Face dataset has it; the text of the prompt; a right answer.
TSV = {
    "pope": (
        {"answer": "Yes", "category": "adversarial,popular", "question": "Is there a dog?"},
        "Is there a dog?" + PHRASE,
        "yes",
    ),
    "pope_vlmevalkit": (
        {"answer": "Yes", "category": "random", "question": "Is there a dog?"},
        "Is there a dog?",
        "Yes, there is.",
    ),
    "mme": (
        {"answer": "Yes", "category": "OCR", "image_path": "1.png", "question": "Is it red? Please answer yes or no."},
        "Is it red?" + PHRASE,
        "Yes.",
    ),
    "gqa": ({"question": "Left or right?", "answer": "left"}, "Left or right?" + PHRASE, "Left."),
    "scienceqa_img": (CHOICE | {"hint": "Wind."}, f"Context: Wind.\nWhich?{OPTIONS}{LETTER}", "B. boat"),
    "ai2d": (CHOICE, f"Which?{OPTIONS}{LETTER}", "B."),
    "seedbench_img": (CHOICE, f"Which?{OPTIONS}{LETTER}", "Boat? B"),
    "mmstar": (CHOICE | {"l2_category": "x"}, f"Which?{OPTIONS}{LETTER}".removesuffix("."), "(B)"),
    "mmbench": (CHOICE | {"hint": "Wind.", "split": "dev", "l2-category": "x"}, f"Hint: Wind.\n{VLMEVALKIT}", "B"),
    "mmmu_val": (
        CHOICE | {"split": "validation", "question_type": "multiple-choice"},
        f"Which?{OPTIONS}\n{LETTER}",
        "The answer is B",
    ),
    "realworldqa": (CHOICE, f"Which?{OPTIONS}", "B"),
    "mmstar_vlmevalkit": (CHOICE | {"l2_category": "x"}, VLMEVALKIT, "a boat"),
    "chartqa": (
        {"question": "How many?", "answer": "['200']", "split": "test_human"},
        "How many?\nAnswer the question with a single word.",
        "209",
    ),
    "textvqa": ({"question": "what does NASA say", "answer": str(TEN)}, "What does nasa say" + PHRASE, "Don't!"),
    "docvqa": (LISTED | {"question": "Which number?"}, "Which number?" + PHRASE, "invoice 12"),
    "infovqa": (LISTED | {"question": "Which number?"}, "Which number?" + PHRASE, "invoice 12"),
    "ocrbench": (
        {"question": "What is written?", "answer": "['CENTRE']", "category": "Regular Text Recognition"},
        "What is written?",
        "It reads centre",
    ),
}
PARQUET = {
    "pope": {
        "id": "0",
        "question_id": "1",
        "question": "Is there a dog?",
        "answer": "yes",
        "category": "popular",
        "image": PICTURES[0],
    },
    "mme": {
        "question_id": "OCR/1.png",
        "image": PICTURES[0],
        "question": "Is it red? Please answer yes or no.",
        "answer": "Yes",
        "category": "OCR",
    },
    "scienceqa_img": {
        "image": PICTURES[0],
        "question": "Which?",
        "choices": ["kite", "boat", "None"],
        "answer": 1,
        "hint": "Wind.",
        "subject": "natural science",
    },
    "ai2d": {"question": "Which?", "options": ["kite", "boat", "None"], "answer": "1", "image": PICTURES[0]},
    "seedbench_img": {
        **{"answer": "B", "choice_a": "kite", "choice_b": "boat", "choice_c": "None", "choice_d": None},
        **{"data_type": "image", "question": "Which?", "question_id": "101669", "image": [PICTURES[0]]},
    },
    "mmstar": {
        **{"index": 0, "question": "Which?" + OPTIONS, "image": PICTURES[0], "answer": "B", "category": "math"},
        **{"l2_category": "geometry", "meta_info": {"source": "x", "split": "val", "image_path": "images/0.jpg"}},
    },
    "mmbench": {
        **{
            "index": "7",
            "question": "Which?",
            "hint": "Wind.",
            "answer": "B",
            "A": "kite",
            "B": "boat",
            "C": "None",
            "D": "nan",
        },
        **{"category": "things", "image": PICTURES[0], "L2-category": "x", "split": "dev"},
    },
    "mmmu_val": {
        **{"id": "validation_Art_1", "question": "Which?", "options": "['kite', 'boat', 'None']", "answer": "B"},
        **{"question_type": "multiple-choice", "subfield": "Art", "image_1": PICTURES[0], "image_2": None},
    },
    "realworldqa": {"image": PICTURES[0], "image_path": "0.webp", "question": "Which?" + OPTIONS, "answer": "B"},
    "chartqa": {"type": "human_test", "question": "How many?", "answer": "200", "image": PICTURES[0]},
    "textvqa": {
        "image_id": "a",
        "question_id": 34602,
        "question": "what does NASA say",
        "answers": TEN,
        "image": PICTURES[0],
    },
    "docvqa": {
        "questionId": "1",
        "question": "Which number?",
        "image": PICTURES[0],
        "docId": 1,
        "answers": ["Invoice 12"],
    },
    "infovqa": {"questionId": "1", "question": "Which number?", "image": PICTURES[0], "answers": ["Invoice 12"]},
    "ocrbench": {
        **{"dataset": "IIIT5K", "question": "What is written?", "question_type": "Regular Text Recognition"},
        **{"answer": ["CENTRE"], "image": PICTURES[0]},
    },
}


def answered(task, paths, answer):
    """Returns the only item of files, the text of its prompt, and the summary if all its questions are answered so."""
    (item,) = task.read(paths)
    questions = task.questions(item)
    summary = task.summary([Judged(item, tuple(task.judge([(question, answer) for question in questions])))])
    (turn,) = questions[0].prompt
    assert turn.role == "user"
    assert [part for part in turn.content if not isinstance(part, str)] == list(item.images) == [PICTURES[0]]
    return item, "".join(part for part in turn.content if isinstance(part, str)), summary


def best(task):
    return {"mme": 200, "mme_vlmevalkit": 200, "ocrbench": 1000, "mmbench": 0}.get(task.name, 100)


@pytest.mark.parametrize("name", TSV)
def test_tsv_of_vlmevalkit(name, tmp_path) -> None:
    row, text, right = TSV[name]
    task = BENCHMARKS[name]
    path = tsv(tmp_path / "file.tsv", [{"index": 7, **image(), **row}])
    item, asked, summary = answered(task, [path], right)
    assert item.id == "7"
    assert asked == "\n" + text
    assert next(iter(summary.items())) == (task.metric.name, pytest.approx(best(task)))
    assert answered(task, [path], "something else entirely")[2][task.metric.name] == 0


@pytest.mark.parametrize("name", PARQUET)
def test_parquet_of_hugging_face(name, tmp_path) -> None:
    _, text, right = TSV[name]
    task = BENCHMARKS[name]
    features = {"image": datasets.Sequence(datasets.Image())} if name == "seedbench_img" else {}
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [PARQUET[name]], features)
    _, asked, summary = answered(task, [str(tmp_path)], right)
    assert asked == "\n" + text
    assert summary[task.metric.name] == pytest.approx(best(task))


def test_parquet_of_vqav2(tmp_path) -> None:
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": number} for number, text in enumerate(TEN)]
    row = {
        "question_id": 262148000,
        "question": "Why?",
        "answers": answers,
        "answer_type": "other",
        "image": PICTURES[0],
    }
    item, asked, summary = answered(BENCHMARKS["vqav2"], [parquet(tmp_path / "v.parquet", [row])], "Dont")
    assert item.references == tuple(TEN)
    assert asked == "\nWhy?" + PHRASE
    assert summary == {"accuracy": 100, "answer_type/other": 100}


def test_parquet_of_gqa_has_its_images_in_a_table_of_their_own(tmp_path) -> None:
    questions = [{"id": f"20{n}", "imageId": f"n{n}", "question": "Left?", "answer": "left"} for n in (1, 0)]
    parquet(
        tmp_path / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet",
        questions,
        {"imageId": datasets.Value("string")},
    )
    with pytest.raises(ConfigError, match="testdev_balanced_images, which does not exist"):
        list(BENCHMARKS["gqa"].read([str(tmp_path)]))
    images = tmp_path / "testdev_balanced_images" / "testdev-00000-of-00001.parquet"
    parquet(images, [{"id": "n0", "image": PICTURES[0]}, {"id": "n1", "image": PICTURES[1]}])
    items = list(BENCHMARKS["gqa"].read([str(tmp_path)]))
    assert [(item.id, item.images) for item in items] == [("201", (PICTURES[1],)), ("200", (PICTURES[0],))]
    parquet(images, [{"id": "n1", "image": PICTURES[1]}])
    with pytest.raises(ConfigError, match="row 2: column 'imageId' names the image 'n0', which does not exist"):
        list(BENCHMARKS["gqa"].read([str(tmp_path)]))


def test_mmmu_shows_images_where_the_text_has_them(tmp_path) -> None:
    row = PARQUET["mmmu_val"] | {
        "question": "<image 2> is it <image 1>?",
        "options": "['<image 1>', 'boat']",
        "image_2": PICTURES[1],
    }
    rows = [row, row | {"id": "open", "question_type": "open", "options": "[]", "answer": "7"}]
    reasons = []
    (item,) = BENCHMARKS["mmmu_val"].read([parquet(tmp_path / "m.parquet", rows)], reasons.append)
    assert reasons == ["an open question"]
    first, second = PICTURES[:2]
    (turn,) = BENCHMARKS["mmmu_val"].questions(item)[0].prompt
    assert turn.content == (second, " is it ", first, "?\nA. ", first, f"\nB. boat\n{LETTER}")
    (turn,) = BENCHMARKS["mmmu_val_vlmevalkit"].questions(item)[0].prompt
    assert turn.content[:3] == ("Question: ", second, " is it ")
    row["question"] = "<image 3>"
    with pytest.raises(ConfigError, match="row 1: column 'question' has <image 3> in it, but the row has 2 images"):
        list(BENCHMARKS["mmmu_val"].read([parquet(tmp_path / "m.parquet", [row])]))


def test_mmmu_of_vlmevalkit_has_lists_of_images_and_other_splits(tmp_path) -> None:
    base = {
        **CHOICE,
        "question": "<image 1> or <image 2>?",
        "question_type": "multiple-choice",
        "id": "validation_Art_1",
    }
    rows = [
        {"index": 1, "image": str([encoded(0), encoded(1)]), **base, "split": "validation"},
        {"index": 2, "image": "1", **base, "id": "validation_Art_2", "split": "validation"},
        {"index": 3, "image": "1", **base, "id": "dev_Art_1", "split": "dev"},
    ]
    reasons = []
    items = list(BENCHMARKS["mmmu_val"].read([tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)], reasons.append))
    assert [item.images for item in items] == [PICTURES[:2], PICTURES[:2]]
    assert reasons == ["a question of split dev"]


def test_mmbench_is_right_only_if_all_rotations_are(tmp_path) -> None:
    task = BENCHMARKS["mmbench"]
    texts = ["kite", "boat", "dog"]
    rows = []
    for shift in range(3):
        turned = texts[-shift:] + texts[:-shift]
        options = dict(zip("ABC", turned, strict=True))
        picture = encoded(0) if not shift else "241"
        rows.append(
            {
                "index": 241 + shift * 1_000_000,
                "question": "Which?",
                **options,
                "answer": "BCA"[shift],
                "image": picture,
            }
        )
    rows.append({**rows[1], "index": 1_000_009})
    reasons = []
    (item,) = task.read([tsv(tmp_path / "a.tsv", rows)], reasons.append)
    assert reasons == ["a rotation of a question that is not in the file"]
    (alone,) = task.read([tsv(tmp_path / "b.tsv", rows[:1])])  # without rotations in the file, they are made
    for asked in (task.questions(item), task.questions(alone)):
        assert [question.key for question in asked] == ["241", "241#1", "241#2"]
        assert [question.item.references for question in asked] == [("B",), ("C",), ("A",)]
        assert [list(question.item.options.values()) for question in asked] == [
            ["kite", "boat", "dog"],
            ["dog", "kite", "boat"],
            ["boat", "dog", "kite"],
        ]
        assert all(question.item.images == (PICTURES[0],) for question in asked)
        right = task.judge([(question, question.item.references[0]) for question in asked])
        partly = task.judge([(question, "B") for question in asked])
        by_text = task.judge([(question, "It is a boat") for question in asked])
        assert [score.score for score in partly] == [1, 0, 0]
        for scores, value in ((right, 100), (partly, 0), (by_text, 100)):
            assert task.summary([Judged(item, tuple(scores))])["accuracy"] == value


def test_pope_counts_an_item_once_per_category(tmp_path) -> None:
    rows = [
        {"index": 1, **image(), "question": "A dog?", "answer": "Yes", "category": "adversarial,popular,random"},
        {"index": 2, **image(), "question": "A cat?", "answer": "Yes", "category": "random"},
    ]
    task = BENCHMARKS["pope"]
    items = list(task.read([tsv(tmp_path / "POPE.tsv", rows)]))
    scores = task.judge([(task.questions(item)[0], answer) for item, answer in zip(items, ("yes", "no"), strict=True)])
    summary = task.summary([Judged(item, (score,)) for item, score in zip(items, scores, strict=True)])
    assert summary["accuracy"] == 75
    assert summary["recall"] == 75
    assert summary["category/random"] == pytest.approx(200 / 3)
    assert summary["category/popular"] == 100


def test_a_definition_is_all_that_a_new_benchmark_needs(tmp_path) -> None:
    """The example of docs/evaluation.md."""
    task = Benchmark(
        "street_signs",
        "Street signs",
        "lmms-eval",
        Fields(id=("id",), images=("picture",), choice=True, options=("choices",), labels={"kind": ("kind",)}),
        prompts.question(prompts.LETTER),
        choices.ai2d,
        groups=("kind",),
    )
    signs = {"id": "a", "question": "What?", "choices": ["stop", "yield"], "kind": "red"}
    rows = [
        signs | {"answer": 1, "picture": PICTURES[0]},
        signs | {"id": "b", "answer": 0, "picture": PICTURES[1], "kind": "blue"},
    ]
    path = parquet(tmp_path / "signs.parquet", rows, {"picture": datasets.Image()})
    items = list(task.read([path]))
    scores = task.judge([(task.questions(item)[0], "B. yield") for item in items])
    summary = task.summary([Judged(item, (score,)) for item, score in zip(items, scores, strict=True)])
    assert summary == {"accuracy": 50, "kind/blue": 0, "kind/red": 100}


def test_white_space_around_an_answer_does_not_count() -> None:
    for name, item, answer in (
        ("chartqa", Item("1", (), "Rising?", ("Yes",)), " Yes\n"),
        ("mmmu_val", Item("1", (), "Which?", ("B",), {"A": "kite", "B": "boat", "C": "tree"}), "B\n"),
    ):
        (scored,) = BENCHMARKS[name].judge([(Question(item, (), "1"), answer)])
        assert (scored.answer, scored.score, scored.guessed) == (answer, 1.0, False)


def test_names_and_conventions() -> None:
    for name, task in BENCHMARKS.items():
        assert task.name == name
        assert name.endswith("_vlmevalkit") <= (task.convention == "VLMEvalKit")
        assert task.dataset in BENCHMARKS
    with pytest.raises(
        ConfigError, match=r"there is no benchmark 'popes'; did you mean 'pope'\?; there are pope, mme, "
    ):
        benchmark("popes")
    with pytest.raises(ValueError, match="no judged items"):
        BENCHMARKS["pope"].summary([])
    with pytest.raises(ValueError, match="needs judge_one or judge_all"):
        replace(BENCHMARKS["pope"], judge_one=None)


def test_base64_in_parquet(tmp_path) -> None:
    """HuggingFaceM4/MMBench keeps VLMEvalKit's base64."""
    row = PARQUET["mmbench"] | {"image": base64.b64encode(PICTURES[0].data).decode()}
    (item,) = BENCHMARKS["mmbench"].read([parquet(tmp_path / "m.parquet", [row], {"image": datasets.Value("string")})])
    assert item.images == (PICTURES[0],)
