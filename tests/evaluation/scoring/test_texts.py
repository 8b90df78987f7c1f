"""Perplexity and multiple choice of texts against the model's logits, and what is said about files."""

import json
import math

import jax
import numpy as np
import pytest

from solo.config import ConfigError, MeshConfig
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import TextRun, encode
from solo.evaluation.scoring.answering import Asking
from solo.evaluation.scoring.predictions import Predictions
from solo.evaluation.scoring.request import Request
from solo.evaluation.scoring.run import evaluate_benchmarks
from solo.evaluation.scoring.scores import Resampling
from solo.evaluation.scoring.text_files import Choice, Document, TextFile, read_texts
from solo.evaluation.scoring.texts import document_windows, measure, option_window, text_settings
from solo.sharding.mesh import make_mesh
from solo.training.observer import Observer
from tests.tiny import save_run, tiny_config, tiny_monolith

HOW = Resampling(200, 0)
TEXTS = ["a red circle is left of the blue square", "which shape is this?", "the green triangle " * 9, "of"]
CHOICES = [
    Choice("1", "the red", ("circle", "square is left", "\u00e9\u00e9"), 1),
    Choice("2", "which ", ("shape", "digit"), 0),
    Choice("3", "", ("a", "the triangle"), 1),
]


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return tiny_monolith(tiny_tokenizer, tiny_config())


def reference(model, tokens: list[int]) -> np.ndarray:
    """Returns the log-probability of each token after the first, from logits of one whole row."""
    document = encode([TextRun(tuple(tokens), False)], model.tokenizer, model.config.image)
    batch = stack([assemble_row([(document, 0)], RowShape(0, 96, 8), model.config.image, 0, model.config.sequence)])
    logits = model.logits(batch)[0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logs[np.arange(len(tokens) - 1), tokens[1:]]


def measured(model, file: TextFile, folder, context: int | None = 80, name: str = "a"):
    asking = Asking.of(model, name, context, 4)
    settings = text_settings(asking, file)
    path = folder / f"{file.name}.{name}.jsonl"
    return measure(asking, file, Predictions(path, settings), False, HOW, lambda done, total: None)


def test_perplexity_is_that_of_the_logits(model, tmp_path) -> None:
    file = TextFile("texts", [Document(str(number), text) for number, text in enumerate(TEXTS)])
    found = measured(model, file, tmp_path)
    encoded = [model.tokenizer.encode(text) for text in TEXTS]
    nats = -sum(reference(model, [model.tokenizer.special.bos, *tokens]).sum() for tokens in encoded)
    tokens, size = sum(map(len, encoded)), sum(map(len, TEXTS))
    assert found.metrics["token_perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found.metrics["byte_perplexity"].value == pytest.approx(math.exp(nats / size), rel=1e-4)
    assert found.metrics["bits_per_byte"].value == pytest.approx(nats / size / math.log(2), rel=1e-4)
    assert (found.count("tokens"), found.count("bytes")) == (tokens, size)
    # A second call computes nothing.
    path = tmp_path / "texts.a.jsonl"
    before = path.read_bytes()
    broken = model.with_parameters(dict(model.parameters))
    broken.log_probabilities = None
    again = measured(broken, file, tmp_path)
    assert (again.metrics, path.read_bytes()) == (found.metrics, before)
    with pytest.raises(ConfigError, match="other prompts"):
        measured(model, TextFile("texts", [Document("0", "another"), *file.items[1:]]), tmp_path)


def test_weights_without_numbers_are_not_scored(model, tmp_path) -> None:
    file = TextFile("choices", CHOICES)
    head = np.full_like(np.array(model.parameters["head"]), np.nan)
    with pytest.raises(ConfigError, match=r"a: 1 of .* NaN or infinite values, the first is head"):
        measured(model.with_parameters({**model.parameters, "head": jax.numpy.asarray(head)}), file, tmp_path)
    overflowing = model.with_parameters(dict(model.parameters))
    overflowing.log_probabilities = lambda batch: np.full((len(batch.text), 1), np.nan)
    with pytest.raises(ConfigError, match="the likelihood of a text is not a number"):
        measured(overflowing, file, tmp_path)


def test_windows_predict_every_token_once_with_full_context_at_the_end() -> None:
    tokens = list(range(10, 33))
    found = document_windows(0, tokens, 1, 8)
    assert [token for window in found for token in window.tokens[window.read :]] == tokens
    assert found[0].tokens == (1, *range(10, 18))
    assert found[1].tokens == tuple(range(17, 26))
    # 7 tokens are left: the window reaches back to hold 9.
    assert found[2].tokens == tuple(range(24, 33))
    assert [window.read for window in found] == [1, 1, 2]
    assert [window.tokens for window in document_windows(0, [5], 1, 8)] == [(1, 5)]


def test_options_are_scored_after_their_context(model, tmp_path) -> None:
    found = measured(model, TextFile("choices", CHOICES), tmp_path)
    encode = model.tokenizer.encode
    for item, line in zip(CHOICES, found.lines, strict=True):
        read = len(encode(item.context.rstrip())) if item.context else 0
        expected = []
        for option in item.options:
            tokens = [model.tokenizer.special.bos, *encode(f"{item.context} {option}")]
            expected.append(reference(model, tokens)[read:].sum())
        assert line["log_likelihoods"] == pytest.approx(expected, abs=1e-3)
        assert line["acc"] == (int(np.argmax(expected)) == item.answer)
        characters = [len(option) for option in item.options]
        assert line["acc_norm"] == (int(np.argmax(np.array(expected) / characters)) == item.answer)
        sizes = [len(option.encode()) for option in item.options]
        assert line["acc_bytes"] == (int(np.argmax(np.array(expected) / sizes)) == item.answer)
    assert found.metrics["acc"].value == pytest.approx(100 * np.mean([line["acc"] for line in found.lines]))


def test_a_long_context_loses_its_beginning(model) -> None:
    tokenizer = model.tokenizer
    option = tokenizer.encode("the red the red the red circle")[len(tokenizer.encode("the red the red the red")) :]
    window = option_window(3, tokenizer, "the red the red the red", "circle", 1, len(option) + 2)
    assert window.truncated
    assert window.tokens[window.read :] == tuple(option)
    assert (window.item, len(window.tokens)) == (3, len(option) + 3)


def test_the_text_of_two_models_is_compared_in_pairs(tiny_tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("solo.inference.loading.local_mesh", lambda: make_mesh(MeshConfig(), jax.devices()[:1]))
    save_run(tiny_monolith(tiny_tokenizer, tiny_config()), tmp_path / "run", 1, 2)
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    request = Request(
        str(tmp_path / "run@1"),
        texts=(str(path),),
        language_model=str(tmp_path / "run@2"),
        output=str(tmp_path / "out"),
        how=HOW,
        batch_rows=4,
    )
    (text,) = evaluate_benchmarks(request, Observer()).texts
    after, before = (text.scores[name].metrics["bits_per_byte"].value for name in ("shown", "language_model"))
    change = text.differences["bits_per_byte"]
    assert after != before
    assert change.value == pytest.approx(after - before)
    assert change.low <= change.value <= change.high
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["texts"]["kept"]["differences"]["bits_per_byte"]["difference"] == pytest.approx(change.value)
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "results.json",
        "text.kept.jsonl",
        "text.kept.language_model.jsonl",
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it holds no text"),
        ("[1]", "line 1: expected an object, found list"),
        ('{"text": ""}', 'neither a "text" nor "options"'),
        ('{"text": "a"}\n\n{"tex', "line 3: it is not JSON"),
        ('{"text": "a"}\n{"context": "a", "options": ["b", "c"], "answer": 1}', "both documents and questions"),
        ('{"context": "a", "options": ["b", "c"], "answer": 2}', "a number from 0 to 1, or a letter from A to B"),
        ('{"context": "a", "options": ["b"], "answer": 0}', "at least two texts"),
        ('{"options": ["b", "c"], "answer": 0}', '"context" must be a text'),
    ],
)
def test_mistakes_in_a_file_are_named(content, words, tmp_path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_texts([str(path)])


def test_files_of_any_kind_are_read(tmp_path) -> None:
    (tmp_path / "book.txt").write_text("\ufeffall\nof it")
    (tmp_path / "q.jsonl").write_text('{"id": "x", "context": "a", "options": ["b", "c"], "answer": "B"}\n' * 3)
    book, questions = read_texts([str(tmp_path / "book.txt"), str(tmp_path / "q.jsonl")], limit=2)
    assert (book.name, book.items) == ("book", [Document("1", "all\nof it")])
    assert questions.items == [Choice("x", "a", ("b", "c"), 1)] * 2
    with pytest.raises(ConfigError, match="another file is named book"):
        read_texts([str(tmp_path / "book.txt"), str(tmp_path / "book.txt")])
