"""Tables of images and text: Parquet and Arrow files, the formats of published and saved Hugging Face datasets.

A row contains images with one or several captions, a question with answers, a conversation, or rated turns as in
FineVision and The Cauldron: `texts: [{"user", "assistant"}]` and `relevance_ratings: [4, 2, ...]`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from solo.config import ConfigError
from solo.data.readers.captions import caption_records
from solo.data.readers.examples import TELLING, read_example, record_id, refuse
from solo.data.readers.image_files import load_image
from solo.data.readers.json_files import parse
from solo.data.readers.paths import Paths
from solo.data.readers.registry import Examples, Ignored, Omitted, Part, Reader, Unreadable, reader
from solo.data.readers.tables import Columns, open_table, table_files, table_parts, table_rows
from solo.data.readers.text_files import DamagedError
from solo.data.record import Image, Place, Record, Turn

Rating = Literal["relevance", "image_correspondence", "visual_dependency", "formatting"]
Form = Literal["caption", "captions", "label", "answers", "conversation", "turns"]
_WHAT = "reader 'parquet'"
_IMAGES = ("images", "image", "img", "jpg", "jpeg", "png", "webp")
_CONVERSATIONS = ("conversations", "messages", "texts", "conversation")
_CAPTIONS = ("text", "caption", "TEXT", "txt", "label", "labels")
_ANSWERS = ("answer", "multiple_choice_answer", "answers")
_URL = re.compile(r"(ima?ge?[_-]?)?ur[li]s?", re.IGNORECASE)
_QUIET = ("id", "width", "height", "__index_level_0__")


@dataclass(frozen=True)
class _Layout:
    """The columns of a table that are read, and the kind of the text column."""

    text: str
    form: Form
    image: str | None
    question: str | None
    class_names: list[str] | None
    ratings: dict[str, str]  # rating -> column
    others: list[str]  # id, and the columns in `TELLING`
    unread: list[str]

    @property
    def columns(self) -> list[str]:
        """All columns to read."""
        single = [column for column in (self.text, self.image, self.question) if column is not None]
        return [*single, *self.ratings.values(), *self.others]


@reader("parquet")
@dataclass(frozen=True)
class Parquet(Reader):
    """Parquet files, Arrow files, or a folder of them: the output of `save_to_disk`, or a downloaded dataset.

    Each caption of a list makes a record of its own. From a list of answers, the most frequent one is used.

    split        the split to read, if a folder has several
    image        column of the image or images; by default images or image
    text         column of the caption, class label, answer, conversation or turns; by default the first one present of
                 conversations, messages, texts, text, caption, label, answer and answers
    question     column of a question that the text answers; by default question, if text is answer
    images       folder of images that are stored as relative paths
    min_ratings  minimum ratings, such as {relevance: 3}; turns that are rated lower are left out, turns without a
                 rating are kept
    """

    path: Paths
    split: str | None = None
    image: str | None = None
    text: str | None = None
    question: str | None = None
    images: str = "."
    min_ratings: dict[Rating, float] | None = None

    def parts(self, size: int, limit: int | None) -> Iterable[Part]:
        """Returns parts that are whole row groups, or slices of large row groups."""
        found = 0
        files = table_files(self.path, self.split, _WHAT)
        for part in table_parts(files, size, limit):
            if not found and part.span[0] != "damaged":
                self._layout(part.files[0])
            found += 1
            yield part
        if not found:
            raise ConfigError(f"{_WHAT}: {files[0]} has no rows")

    def read(self, part: Part) -> Examples:
        """Yields the examples of each row."""
        path = part.files[0]
        name = os.path.basename(path)
        if part.span[0] == "damaged":
            yield Unreadable(name, str(part.span[1]), Place(path))
            return
        layout = self._layout(path)
        place = Place(path, part.span[4] + 1)
        yield from (Ignored(column, place) for column in layout.unread)
        ignored: set[str] = set()
        for number, row in table_rows(part, layout.columns):
            row_id, place = f"{name}:{number}", Place(path, number)
            if isinstance(row, str):
                yield Unreadable(row_id, row, place)
                continue
            row_id = record_id(row.get("id"), row_id)
            keys: list[str] = []
            omitted: list[str] = []
            try:
                if layout.form == "captions":
                    records = self._captioned(row, layout, row_id, place)
                else:
                    records = [Record(row_id, self._turns(row, layout, keys.append, omitted.append), place)]
            except ValueError as error:
                yield Unreadable.because(error, row_id, place)
                continue
            for key in keys:
                if key not in ignored:
                    ignored.add(key)
                    yield Ignored(key, place)
            yield from (Omitted(what, place) for what in omitted)
            yield from records

    # ----------------------------------------------------------------------------------------- columns

    def _layout(self, path: str) -> _Layout:
        """Returns the layout of a table. Raises ConfigError, which lists all columns, if one is missing or mistyped."""
        try:
            columns = Columns(open_table(path).schema)
        except DamagedError as fault:
            raise ConfigError(f"{_WHAT}: {path}: {fault}") from None
        what = f"{_WHAT}: {path}"
        image = columns.find(self.image, _image_columns(columns), "image", what)
        if image is not None and not _holds_images(columns.type(image)):
            raise ConfigError(f"{what}: column {image!r} holds {columns.type(image)}, not images\n{columns}")
        asked = columns.find(self.question, (), "question", what)
        usual = _ANSWERS if asked else (*_CONVERSATIONS, *_CAPTIONS, *_ANSWERS)
        text = columns.find(self.text, usual, "text", what)
        if text is None:
            raise ConfigError(f"{what}: name the column of the text with `text`\n{columns}")
        form = _form(columns, text)
        if text in _ANSWERS and asked is None and self.text is None:
            asked = columns.find(None, ("question",), "question", what)
        if form == "captions" and asked is not None:
            form = "answers"
        if form is None or (form == "captions" and image is None):
            raise ConfigError(f"{what}: column {text!r} holds {columns.type(text)}, not text\n{columns}")
        if image is None and form in ("caption", "label") and self.image is None and asked is None:
            unsure = [name for name in columns.schema.names if _holds_images(columns.type(name), sure=True)]
            if unsure:
                raise ConfigError(f"{what}: name the column of the images with `image`\n{columns}")
            urls = [name for name in columns.schema.names if _URL.fullmatch(name)]
            if urls and text not in ("text", "txt") and self.text is None:
                raise ConfigError(
                    f"{what}: column {urls[0]!r} names images on the web, and nothing is fetched from the network; load"
                    f" them first, for example with img2dataset, or set `text: {text}` to learn the captions alone"
                )
        ratings = {str(rating): f"{rating}_ratings" for rating in self.min_ratings or ()}
        for rating, column in ratings.items():
            if column not in columns.schema.names or form != "turns":
                raise ConfigError(f"{what}: option 'min_ratings': {rating} needs turns and {column}\n{columns}")
        others = [name for name in ("id", *sorted(TELLING)) if name in columns.schema.names]
        others = [name for name in others if name not in (text, image, asked)]
        read = {text, image, asked, *ratings.values(), *others, *_QUIET}
        unread = [name for name in columns.schema.names if name not in read]
        return _Layout(text, form, image, asked, columns.class_names(text), ratings, others, unread)

    # -------------------------------------------------------------------------------------------- rows

    def _turns(
        self, row: Mapping[str, Any], layout: _Layout, ignored: Callable[[str], None], omitted: Callable[[str], None]
    ) -> tuple[Turn, ...]:
        load = partial(load_image, folder=self.images)
        images = _listed(row[layout.image]) if layout.image is not None else []
        beside = {column: row[column] for column in layout.others if column != "id"}
        value = row[layout.text]
        if value is None:
            raise ValueError(f"its {layout.text} is null")
        if layout.form in ("conversation", "turns"):
            if layout.form == "turns":
                value = self._messages(self._rated(value, row, layout, omitted), layout, ignored)
            elif isinstance(value, str):
                value = _parse(layout.text, value)
            example = {"messages": value, **beside}
            return read_example(example, "", None, ignored, images=images or None, load=load).turns
        refuse(beside)
        if layout.image is not None and not images:
            raise ValueError(f"its {layout.image} is null")
        if layout.form == "label":
            text = _class_name(value, layout)
        else:
            text = _most_common(_texts(value, layout.text)) if layout.form == "answers" else str(value)
        if not text.strip():
            raise ValueError(f"its {layout.text} is empty")
        loaded: list[str | Image] = [load(image) for image in images]
        if layout.question is None:
            return (Turn("text", (*loaded, text)),)
        if not isinstance(row[layout.question], str):
            raise ValueError(f"its {layout.question} is not a text")
        return Turn("user", (*loaded, row[layout.question])), Turn("assistant", (text,))

    def _captioned(self, row: Mapping[str, Any], layout: _Layout, row_id: str, place: Place) -> list[Record]:
        refuse({column: row[column] for column in layout.others if column != "id"})
        captions = _texts(row[layout.text], layout.text)
        images = [load_image(image, folder=self.images) for image in _listed(row[str(layout.image)])]
        return list(caption_records(row_id, images, captions, "each", place))

    def _rated(
        self, texts: Sequence[Any], row: Mapping[str, Any], layout: _Layout, omitted: Callable[[str], None]
    ) -> list[tuple[int, Any]]:
        """Returns the turns of `texts` that meet the minimum ratings, with their numbers."""
        low: dict[int, str] = {}
        for (rating, least), column in zip((self.min_ratings or {}).items(), layout.ratings.values(), strict=True):
            given = row[column]
            if given is not None and len(given) != len(texts):
                raise ValueError(f"it has {len(given)} {column} for {len(texts)} turns")
            for number, value in enumerate(given or (), start=1):
                if value is not None and value < least:
                    low.setdefault(number, f"{rating} below {least:g}")
        if texts and len(low) == len(texts):
            raise ValueError(f"no turn is left: {', '.join(sorted(set(low.values())))}")
        for _, reason in sorted(low.items()):
            omitted(f"turns with {reason}")
        return [(number, turn) for number, turn in enumerate(texts, start=1) if number not in low]

    def _messages(
        self, turns: Iterable[tuple[int, Any]], layout: _Layout, ignored: Callable[[str], None]
    ) -> list[dict[str, Any]]:
        """Converts user-assistant turns to messages."""
        messages = []
        for number, turn in turns:
            said = [turn.get(key) for key in ("user", "assistant")] if isinstance(turn, Mapping) else [None]
            if not all(isinstance(text, str) for text in said):
                raise ValueError(f"turn {number} of {layout.text} has no 'user' and 'assistant' text")
            for key in turn:
                if key not in ("user", "assistant"):
                    ignored(f"{layout.text}.{key}")
            messages += [{"role": role, "content": turn[role]} for role in ("user", "assistant")]
        return messages


def _image_columns(columns: Columns) -> list[str]:
    """Returns the columns that may contain images, first those that `datasets` marks as images."""
    noted = [name for name, feature in columns.features.items() if '"Image"' in json.dumps(feature)]
    usual = [name for name in _IMAGES if name in columns.schema.names]
    if len(noted) == 1:
        return noted
    return [name for name in usual if name in noted] or usual


def _holds_images(kind: pa.DataType, sure: bool = False) -> bool:
    """Returns whether values of a type can be images. With `sure`, strings, which may be paths, do not count."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return _holds_images(kind.value_type, sure)
    if pa.types.is_struct(kind):
        return any(kind.get_field_index(name) >= 0 for name in ("bytes", "path"))
    return _is_binary(kind) or (pa.types.is_null(kind) and not sure) or (_is_text(kind) and not sure)


def _form(columns: Columns, column: str) -> Form | None:
    kind = columns.type(column)
    if pa.types.is_integer(kind) and columns.class_names(column):
        return "label"
    if _is_text(kind) or pa.types.is_null(kind):
        return "conversation" if column in _CONVERSATIONS else "caption"
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type):
        names = {item.name for item in kind.value_type}
        if {"user", "assistant"} <= names:
            return "turns"
        if names & {"role", "from"}:
            return "conversation"
        return "captions" if "answer" in names else None
    is_texts = (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)
    return "captions" if is_texts and column not in _CONVERSATIONS else None


def _texts(value: Any, column: str) -> list[str]:
    """Returns the texts of a list, whose elements may also be `{"answer": text}`, as in VQA v2."""
    if value is None:
        raise ValueError(f"its {column} is null")
    texts = [each["answer"] if isinstance(each, Mapping) else each for each in value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"its {column} holds something that is not a text")
    return texts


def _most_common(texts: Sequence[str]) -> str:
    counts = Counter(text for text in texts if text.strip())
    return counts.most_common(1)[0][0] if counts else ""


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _listed(value: Any) -> list[Any]:
    """Returns the images of a row as a list: one, several, or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _class_name(value: Any, layout: _Layout) -> str:
    names = layout.class_names or []
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise ValueError(f"its {layout.text} is {value}, which is none of the {len(names)} classes")
    return names[value]


def _parse(column: str, text: str) -> Any:
    try:
        return parse(text.encode(errors="replace"))
    except ValueError as error:
        raise ValueError(f"its {column} is neither a list of messages nor JSON: {error}") from None
