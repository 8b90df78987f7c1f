"""Perplexity of texts and multiple choice by likelihood, with the conventions of lm-evaluation-harness.

Perplexity: a text is predicted from its beginning-of-text token in windows of the longest sequence, each of which
continues where the one before ended (`loglikelihood_rolling`). The last window starts early enough to be full.

Multiple choice: the likelihood of each option, after the context and a space. Context and option are tokenized together
and divided where the context's own tokens end. `acc` takes the most likely option, `acc_norm` the most likely per
character, and `acc_bytes` per byte of UTF-8 (as the harness's code does, whose paper says bytes for `acc_norm`).

Unlike there, the text always begins with the model's beginning-of-text token, or its end-of-text token without one:
that is what our models are trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from solo.config import ConfigError
from solo.data.planning.row_shape import RowShape
from solo.data.rows.assembly import assemble_row, stack
from solo.data.rows.document import TextRun, encode
from solo.data.text import Tokenizer
from solo.evaluation.scoring.answering import Asking, Line, Note
from solo.evaluation.scoring.digest import text_digest
from solo.evaluation.scoring.intervals import Difference, Interval, Tallies, difference, interval
from solo.evaluation.scoring.predictions import Predictions, Settings
from solo.evaluation.scoring.scores import Resampling
from solo.evaluation.scoring.text_files import Choice, Document, TextFile
from solo.inference.prompt import by_length

CONVENTION = "lm-evaluation-harness"
DEFAULT_CONTEXT = 2_048
_GROUP = 16  # batches between two writes to the file

Value = Callable[[np.ndarray], np.ndarray]
# name -> metric of the sums (nats, tokens, bytes), or of (right, right by characters, right by bytes, items)
PERPLEXITY: Mapping[str, Value] = {
    "bits_per_byte": lambda sums: sums[..., 0] / sums[..., 2] / math.log(2),
    "byte_perplexity": lambda sums: np.exp(sums[..., 0] / sums[..., 2]),
    "token_perplexity": lambda sums: np.exp(sums[..., 0] / sums[..., 1]),
}
ACCURACY: Mapping[str, Value] = {
    "acc": lambda sums: 100 * sums[..., 0] / sums[..., 3],
    "acc_norm": lambda sums: 100 * sums[..., 1] / sums[..., 3],
    "acc_bytes": lambda sums: 100 * sums[..., 2] / sums[..., 3],
}


@dataclass(frozen=True)
class Window:
    """A stretch of tokens.

    item       number of the text that it belongs to
    tokens     at most one more than a sequence may have
    read       tokens that are only read; the others are predicted
    truncated  whether tokens before it were left out
    """

    item: int
    tokens: tuple[int, ...]
    read: int
    truncated: bool = False


@dataclass(frozen=True)
class TextScore:
    """The score of a model on a file of texts.

    metrics  by name, with their intervals
    lines    one for each item, in order
    """

    file: TextFile
    model: str
    metrics: Mapping[str, Interval]
    tallies: Mapping[str, Tallies]
    lines: Sequence[Line]

    def count(self, what: str) -> int:
        """Returns a sum over the lines, such as of `unknown` tokens or of `truncated` options."""
        return sum(int(line[what]) for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        """Returns the score as JSON values."""
        counts = ("truncated",) if self.file.is_choice else ("tokens", "bytes", "unknown")
        return {
            "model": self.model,
            "convention": CONVENTION,
            "items": len(self.lines),
            **{name: {"value": each.value, "low": each.low, "high": each.high} for name, each in self.metrics.items()},
            **{name: self.count(name) for name in counts},
        }


def text_settings(asking: Asking, file: TextFile) -> Settings:
    """Returns what decides the results of a file."""
    return Settings(f"text:{file.name}", CONVENTION, "removed", 0, asking.weights, asking.config, asking.name)


def measure(
    asking: Asking, file: TextFile, predictions: Predictions, force: bool, how: Resampling, note: Note
) -> TextScore:
    """Measures a model on a file, and goes on where an earlier call stopped.

    Args:
        asking: the model.
        file: the texts.
        predictions: known results; new ones are appended after every group of batches.
        force: measure again what the file has for other texts.
        how: for the intervals.
        note: called with (items done, items).

    Raises:
        ConfigError: a text cannot be tokenized, or the file has results for other texts.
    """
    context = asking.context or DEFAULT_CONTEXT
    keys = [str(number) for number in range(len(file.items))]
    predictions.check({key: _digest(item, context) for key, item in zip(keys, file.items, strict=True)}, force)
    known = predictions.known
    done = len([key for key in keys if key in known])
    if done < len(keys):
        with closing(predictions.open()) as lines:
            for numbers, windows in _groups(asking, file, context):
                if all(keys[number] in known for number in numbers):
                    continue
                sums = _log_likelihoods(asking, windows)
                for number in numbers:
                    line = _line(asking, file, number, windows, sums, context)
                    lines.write(line)
                    known[keys[number]] = line
                note(sum(key in known for key in keys), len(keys))
            lines.sync()
    found = [known[key] for key in keys]
    predictions.finish(found)
    tallies = {name: Tallies(value, _sums(file, found)) for name, value in metrics_of(file).items()}
    intervals = {name: interval(each, resamples=how.resamples, seed=how.seed) for name, each in tallies.items()}
    return TextScore(file, asking.name, intervals, tallies, found)


def metrics_of(file: TextFile) -> Mapping[str, Value]:
    """Returns the metrics of a file by name."""
    return ACCURACY if file.is_choice else PERPLEXITY


def differences(after: TextScore, before: TextScore, how: Resampling) -> dict[str, Difference]:
    """Returns after - before in every metric, paired over the items. More bits per byte are worse."""
    return {
        name: difference(after.tallies[name], before.tallies[name], resamples=how.resamples, seed=how.seed)
        for name in after.tallies
    }


def document_windows(item: int, tokens: Sequence[int], prefix: int, context: int) -> list[Window]:
    """Returns the windows of a text, in which each of its tokens is predicted once.

    Args:
        item: number of the text.
        tokens: of the text.
        prefix: the token before the text.
        context: the most tokens that a prediction sees; a window holds one more.
    """
    whole = [prefix, *tokens]
    found = []
    for start in range(1, len(whole), context):
        stop = min(start + context, len(whole))
        first = max(0, stop - context - 1)
        found.append(Window(item, tuple(whole[first:stop]), start - first))
    return found


def option_window(item: int, tokenizer: Tokenizer, context: str, option: str, prefix: int, longest: int) -> Window:
    """Returns the window of a context and an option. What does not fit is left out at the context's beginning."""
    kept = context.rstrip()  # white space at the end of a context belongs to the option's first token
    read = tokenizer.encode(kept) if kept else []
    whole = [prefix, *tokenizer.encode(f"{context} {option}")]
    predicted = max(1, len(whole) - 1 - len(read))
    tokens = tuple(whole[-(longest + 1) :])
    return Window(item, tokens, max(1, len(tokens) - predicted), len(tokens) < len(whole))


def _groups(asking: Asking, file: TextFile, context: int) -> Iterator[tuple[list[int], list[Window]]]:
    """Yields items and their windows, some batches at a time."""
    tokenizer = asking.model.tokenizer
    prefix = tokenizer.special.bos if tokenizer.special.bos is not None else tokenizer.special.eos
    numbers: list[int] = []
    windows: list[Window] = []
    for number, item in enumerate(file.items):
        try:
            if isinstance(item, Document):
                windows += document_windows(number, tokenizer.encode(item.text), prefix, context)
            else:
                windows += [
                    option_window(number, tokenizer, item.context, each, prefix, context) for each in item.options
                ]
        except ValueError as error:
            raise ConfigError(f"text {file.name}: {item.id}: {error}") from None
        numbers.append(number)
        if len(windows) >= _GROUP * asking.batch_rows:
            yield numbers, windows
            numbers, windows = [], []
    if numbers:
        yield numbers, windows


def _log_likelihoods(asking: Asking, windows: Sequence[Window]) -> list[float]:
    """Returns the log-likelihood of each window's predicted tokens, in nats.

    Raises:
        ConfigError: one is not a number.
    """
    model, config = asking.model, asking.model.config
    if not windows:
        return []
    rows = model.answered_together(len(windows), asking.batch_rows)
    needs = np.array([[0, len(window.tokens)] for window in windows])
    found = [0.0] * len(windows)
    for batch in by_length(needs, rows, model.mesh.shape["context"]):
        shape = RowShape(0, batch.room[1], batch.room[1])
        padded = batch.numbers + batch.numbers[-1:] * (rows - len(batch.numbers))
        documents = []
        for number in padded:
            window = windows[number]
            runs = [TextRun(window.tokens[: window.read], False), TextRun(window.tokens[window.read :], True)]
            documents.append(encode(runs, model.tokenizer, config.image))
        pad = model.tokenizer.special.pad
        made = stack([assemble_row([(each, 0)], shape, config.image, pad, config.sequence) for each in documents])
        totals = model.log_probabilities(made).astype(np.float64).sum(axis=1)
        if np.isnan(totals).any():
            raise ConfigError(
                f"{asking.name}: the likelihood of a text is not a number: the model's activations overflow; its"
                " training has diverged, or its config is not that of the weights"
            )
        for number, total in zip(batch.numbers, totals.tolist(), strict=False):
            found[number] = total
    return found


def _line(
    asking: Asking, file: TextFile, number: int, windows: Sequence[Window], sums: Sequence[float], context: int
) -> Line:
    item = file.items[number]
    own = [(window, total) for window, total in zip(windows, sums, strict=True) if window.item == number]
    made: Line = {
        "kind": "prediction",
        "task": f"text:{file.name}",
        "key": str(number),
        "id": item.id,
        "prompt_digest": _digest(item, context),
        "convention": CONVENTION,
        "model": asking.name,
        "weights": asking.weights,
    }
    if isinstance(item, Document):
        predicted = [token for window, _ in own for token in window.tokens[window.read :]]
        unknown = asking.model.tokenizer.unknown
        return made | {
            "answer": "",
            "nats": -sum(total for _, total in own),
            "tokens": len(predicted),
            "bytes": len(item.text.encode()),
            "unknown": 0 if unknown is None else predicted.count(unknown),
        }
    totals = np.array([total for _, total in own])
    by = {"acc": 1, "acc_norm": [len(each) for each in item.options], "acc_bytes": _bytes(item)}
    chosen = {name: int(np.argmax(totals / np.array(lengths))) for name, lengths in by.items()}
    return made | {
        "context": item.context,
        "options": list(item.options),
        "reference": item.answer,
        "answer": item.options[chosen["acc"]],
        "log_likelihoods": totals.tolist(),
        **{name: place == item.answer for name, place in chosen.items()},
        "truncated": sum(window.truncated for window, _ in own),
    }


def _bytes(item: Choice) -> list[int]:
    return [len(each.encode()) for each in item.options]


def _sums(file: TextFile, lines: Sequence[Line]) -> np.ndarray:
    if file.is_choice:
        return np.array([[line[name] for name in ACCURACY] + [1] for line in lines], np.float64)
    return np.array([[line[name] for name in ("nats", "tokens", "bytes")] for line in lines], np.float64)


def _digest(item: Document | Choice, context: int) -> str:
    parts = [item.text] if isinstance(item, Document) else [item.context, list(item.options), item.answer]
    return text_digest(json.dumps([context, *parts]))
