import pytest
from pycocoevalcap.cider.cider import Cider

from solo.config import ConfigError
from solo.evaluation.benchmarks.definitions import BENCHMARKS
from solo.evaluation.benchmarks.item import Judged
from tests.evaluation.benchmarks.layouts import encoded, tsv

REFERENCES = {
    "1": ["a man rides a brown horse", "a man on a horse in a field"],
    "2": ["two dogs play with a red ball", "dogs run after a ball"],
    "3": ["a plate of food on a table", "food on a plate"],
}
ANSWERS = {"1": "a man rides a horse", "2": "two dogs play with a red ball", "3": ""}


@pytest.fixture
def path(tmp_path):
    rows = [{"index": key, "image": encoded(0), "answer": str(texts)} for key, texts in REFERENCES.items()]
    return tsv(tmp_path / "COCO_VAL.tsv", rows)


def test_cider_of_vlmevalkit(path) -> None:
    task = BENCHMARKS["coco_captions_vlmevalkit"]
    items = list(task.read([path]))
    asked = [task.questions(item)[0] for item in items]
    assert asked[0].prompt[0].content[-1].startswith("Please describe this image in general.")
    scores = task.judge([(question, ANSWERS[question.key]) for question in asked])
    expected, each = Cider().compute_score(REFERENCES, {key: [text] for key, text in ANSWERS.items()})
    assert [score.score for score in scores] == pytest.approx(list(each))
    summary = task.summary([Judged(item, (score,)) for item, score in zip(items, scores, strict=True)])
    assert summary == {"cider": pytest.approx(100 * expected)}
    assert scores[1].score > scores[0].score > scores[2].score == 0


def test_what_cider_needs(path, monkeypatch) -> None:
    task = BENCHMARKS["coco_captions"]
    (item, *_) = task.read([path])
    question = task.questions(item)[0]
    assert question.prompt[0].content[1:] == ("\n", "Provide a one-sentence caption for the provided image.")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="a Java program; install a Java runtime, or take coco_captions_vlmevalkit"):
        task.judge([(question, "a horse")])
    monkeypatch.setattr("solo.evaluation.benchmarks.captions.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install solo-vlm\[captions\]"):
        task.judge([(question, "a horse")])
