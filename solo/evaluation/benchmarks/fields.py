"""Fields of a benchmark: the columns of an item in each layout, and how a row becomes an item."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from solo.config import ConfigError
from solo.data.record import Place
from solo.evaluation.benchmarks.images import Images, fault, listed
from solo.evaluation.benchmarks.item import SEVERAL, Item
from solo.evaluation.benchmarks.prompts import MARKER
from solo.evaluation.benchmarks.rows import Row, Source, open_sources

LeftOut = Callable[[str], None]
_LETTERS = tuple(string.ascii_uppercase)
_ROTATION = 1_000_000  # MMBench numbers the rotations of item 7 as 1000007, 2000007, ...


@dataclass(frozen=True)
class Fields:
    """The columns of an item. If a column has several names, the first one that occurs in a file is read.

    id          columns of the id; `a+b` joins two. Without one, rows are numbered from 1
    question    columns of the question
    asked       the question of every item, if no column holds it
    answer      columns of the right answer or answers. In a multiple-choice item: the letter, or the number from 0
    answers     the allowed answers, in lower case
    annotators  fewest answers that the metric is defined for
    choice      whether every item has options
    options     columns of a list of options, `choice_*` for choice_a, choice_b, ...; A, B, C, ... are always read
    hint        columns of a text to read before the question
    images      columns of the image or images, `image_*` for image_1, image_2, ...
    inline      whether markers in the text say where images are
    labels      columns of each label
    required    labels that every item must have
    values      the allowed values of a required label
    several     labels whose columns list several values with commas between them
    splits      splits that a folder may hold, in order of preference
    folders     names of the benchmark's folder in a repository that holds several
    omit        returns why a row is no item of the benchmark, or None
    circular    whether rows may be rotations of others
    """

    id: tuple[str, ...] = ("index",)
    question: tuple[str, ...] = ("question",)
    asked: str = ""
    answer: tuple[str, ...] = ("answers", "answer")
    answers: tuple[str, ...] = ()
    annotators: int = 1
    choice: bool = False
    options: tuple[str, ...] = ()
    hint: tuple[str, ...] = ()
    images: tuple[str, ...] = ("image", "image_path")
    inline: bool = False
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    several: tuple[str, ...] = ()
    splits: tuple[tuple[str, ...], ...] = (("test",), ("validation",), ("val",), ("dev",))
    folders: tuple[str, ...] = ()
    omit: Callable[[Mapping[str, Any]], str | None] = lambda values: None
    circular: bool = False

    def items(self, paths: Sequence[str], what: str, left_out: LeftOut = lambda reason: None) -> Iterator[Item]:
        """Yields the items of files; see `Benchmark.read`."""
        sources = open_sources(paths, self.splits, self.folders, what)
        found = _unique(self._rows(sources, what, left_out), what)
        yield from _with_variants(found, left_out) if self.circular else found

    def _rows(self, sources: Sequence[Source], what: str, left_out: LeftOut) -> Iterator[Item]:
        number = 0
        for source in sources:
            columns = _Columns(self, source, what)
            images = Images(source, columns.images, what)
            for row in source.rows(columns.all):
                number += 1
                reason = self.omit(row.values)
                if reason is not None:
                    left_out(reason)
                    continue
                yield _RowReader(self, columns, row, what).item(images, number)
        if not number:
            raise ConfigError(f"{what}: {', '.join(source.path for source in sources)} has no rows")


class _Columns:
    """The columns of a file that are read."""

    def __init__(self, fields: Fields, source: Source, what: str):
        have = source.columns
        self.is_text = source.is_text
        self.id = next((name for name in fields.id if set(name.split("+")) <= set(have)), None)
        self.question = None if fields.asked else _first(fields.question, source, "the question", what)
        self.answer = _first(fields.answer, source, "the answer", what)
        self.letters = [letter for letter in _LETTERS if letter in have]
        self.options = next(filter(None, (_matching(name, have) for name in fields.options)), [])
        self.hint = next((name for name in fields.hint if name in have), None)
        self.images = next(filter(None, (_matching(name, have) for name in fields.images)), [])
        if not self.images:
            raise _missing(fields.images, source, "the image", what)
        labels = {label: [name for name in names if name in have] for label, names in fields.labels.items()}
        self.labels = {label: names[0] for label, names in labels.items() if names}
        for label in fields.required:
            if label not in self.labels:
                raise _missing(fields.labels[label], source, f"label {label!r}", what)
        if fields.choice and not self.letters and not self.options:
            raise _missing(("A", "B", *fields.options), source, "the options", what)
        # Some layouts name a file beside the image, or the images of another table; others filter by these columns.
        beside = [name for name in ("image_path", "split", "g_index", "question_type", "data_type") if name in have]
        single = [self.question, self.answer, self.hint, *(self.id or "").split("+"), *self.labels.values()]
        self.all = list(dict.fromkeys([*filter(None, single), *self.letters, *self.options, *self.images, *beside]))


class _RowReader:
    """Reads a row. Every fault is a ConfigError that names file, row and column."""

    def __init__(self, fields: Fields, columns: _Columns, row: Row, what: str):
        self.fields, self.columns, self.values, self.place, self.what = fields, columns, row.values, row.place, what

    def item(self, images: Images, number: int) -> Item:
        columns = self.columns
        name = self._id(number)
        question = self.fields.asked or self._text(columns.question or "")
        options = self._options()
        if self.fields.choice and len(options) < 2:
            raise self.fault(
                (columns.options or columns.letters)[0], "and the other columns of options hold fewer than two options"
            )
        references = self._references(options)
        shown = images.of(self.values, self.place)
        if self.fields.inline:
            for marker in MARKER.finditer("\n".join((question, *options.values()))):
                if not 1 <= int(marker[1]) <= len(shown):
                    raise self.fault(columns.question, f"has {marker[0]} in it, but the row has {len(shown)} images")
        labels = {label: _known(self.values[column]) or "" for label, column in columns.labels.items()}
        labels |= {
            label: SEVERAL.join(part.strip() for part in labels[label].split(","))
            for label in self.fields.several
            if label in labels
        }
        for label in self.fields.required:
            if not labels[label]:
                raise self.fault(columns.labels[label], "is empty, but the score depends on it")
        for label, values in self.fields.values.items():
            if labels[label] not in values:
                raise self.fault(columns.labels[label], f"is {labels[label]!r:.60}, not one of {', '.join(values)}")
        hint = self.values[columns.hint] if columns.hint else None
        return Item(name, shown, question, references, options, labels, _known(hint) or "", place=self.place)

    def fault(self, column: str | None, text: str) -> ConfigError:
        return fault(self.what, self.place, column, text)

    def _id(self, number: int) -> str:
        if self.columns.id is None:
            return str(number)
        found = [self.values[column] for column in self.columns.id.split("+")]
        if any(value is None or value == "" for value in found):
            raise self.fault(self.columns.id, "is empty, but must name the row")
        return "/".join(map(str, found))

    def _text(self, column: str) -> str:
        found = self.values[column]
        if not isinstance(found, str) or not found.strip():
            raise self.fault(column, f"must be a text, not {found!r:.100}")
        return found

    def _options(self) -> dict[str, str]:
        if self.columns.letters:
            found = {letter: _known(self.values[letter]) for letter in self.columns.letters}
        elif len(self.columns.options) > 1:
            found = dict(zip(_LETTERS, (_known(self.values[column]) for column in self.columns.options), strict=False))
        elif self.columns.options:
            (column,) = self.columns.options
            texts = listed(self.values[column])
            if not isinstance(texts, list) or len(texts) > len(_LETTERS):
                raise self.fault(column, f"must be a list of options, not {self.values[column]!r:.100}")
            # Every text is an option, even "None"; the values None and NaN stand for a missing option.
            found = dict(zip(_LETTERS, (one if isinstance(one, str) else _known(one) for one in texts), strict=False))
        else:
            return {}
        return {letter: text for letter, text in found.items() if text is not None}

    def _references(self, options: Mapping[str, str]) -> tuple[str, ...]:
        column = self.columns.answer
        value = self.values[column]
        # A table has lists, so that a text in it that looks like one is the answer, unless the column is of lists.
        if isinstance(value, str) and (self.columns.is_text or column == "answers") and not options:
            value = listed(value)
        found = [_answer(one) for one in (value if isinstance(value, list) else [value])]
        if any(one is None for one in found) or not any(one and one.strip() for one in found):
            secret = "answers of test splits are often not public: use the validation split"
            raise self.fault(column, f"holds no answer ({value!r:.60}); {secret}")
        if len(found) < self.fields.annotators:
            raise self.fault(
                column,
                f"holds {len(found)} answers; the metric needs at least {self.fields.annotators} annotators' answers",
            )
        texts = tuple(str(one) for one in found)
        if options:
            return (self._letter(column, texts[0], isinstance(value, int | float), options),)
        if self.fields.answers:
            texts = tuple(text.strip().lower().replace(".", "") for text in texts)
            if texts[0] not in self.fields.answers:
                raise self.fault(column, f"is {value!r:.60}, not one of {', '.join(self.fields.answers)}")
        return texts

    def _letter(self, column: str, text: str, counted: bool, options: Mapping[str, str]) -> str:
        """Returns the letter of an option that is named by its letter, or by its number from 0."""
        text = text.strip()
        if (counted or text.isdecimal()) and 0 <= int(text) < len(_LETTERS) and _LETTERS[int(text)] in options:
            return _LETTERS[int(text)]
        if text.upper() in options:
            return text.upper()
        raise self.fault(column, f"is {text!r:.60}, but the options are {', '.join(options)}")


def _missing(names: Sequence[str], source: Source, kind: str, what: str) -> ConfigError:
    return ConfigError(f"{what}: {source.path} has no column for {kind}: {' or '.join(names)}\n{source.listing}")


def _first(names: Sequence[str], source: Source, kind: str, what: str) -> str:
    found = next((name for name in names if name in source.columns), None)
    if found is None:
        raise _missing(names, source, kind, what)
    return found


def _matching(name: str, columns: Sequence[str]) -> list[str]:
    """Returns a column, or those that a name with a final `*` stands for: `image_*` for image_1, image_2, ..."""
    if not name.endswith("*"):
        return [name] if name in columns else []
    suffixes = (*string.ascii_lowercase, *map(str, range(1, 27)))
    return [name[:-1] + end for end in suffixes if name[:-1] + end in columns]


def _known(value: Any) -> str | None:
    """Returns a text, or None if it is missing. Files that came through pandas have "nan" there, as text or number."""
    text = "" if value is None else str(value)
    return None if text in ("", "nan") else text


def _answer(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("answer")
    if isinstance(value, float):
        # pandas makes all numbers of a column floats if one is missing.
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return None if value is None else str(value)


# ------------------------------------------------------------------------------------- several rows


def _unique(items: Iterator[Item], what: str) -> Iterator[Item]:
    places: dict[str, Place | None] = {}
    for item in items:
        before = places.get(item.id)
        if before is not None and item.place is not None:
            raise fault(what, item.place, None, f"has the id {item.id!r} of {before.file}, row {before.line}")
        places[item.id] = item.place
        yield item


def _with_variants(items: Iterator[Item], left_out: LeftOut) -> Iterator[Item]:
    """Yields items with those that are rotations of them."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(_group(item), []).append(item)
    for name, (*group,) in groups.items():
        main = next((item for item in group if _plain(item.id) == name), None)
        if main is None:
            left_out("a rotation of a question that is not in the file")
            continue
        others = [replace(item, images=main.images) for item in group if item is not main]
        yield replace(main, variants=tuple(others))


def _group(item: Item) -> str:
    if item.labels.get("group"):
        return _plain(item.labels["group"])
    return str(int(item.id) % _ROTATION) if item.id.isdecimal() else item.id


def _plain(number: str) -> str:
    """Returns a number without zeros before it, or behind it where pandas made the column floats."""
    whole = number.removesuffix(".0")
    return str(int(whole)) if whole.isdecimal() else number
