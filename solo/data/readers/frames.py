"""Videos as sampled frames: folders of images, or lists of images with their times."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from solo.config import ConfigError
from solo.data.readers import json_files
from solo.data.readers.conversations import PLACEHOLDER, conversation
from solo.data.readers.examples import record_id
from solo.data.readers.image_files import load_image
from solo.data.readers.imagefolder import IMAGE_SUFFIXES
from solo.data.readers.listing import Entry, list_folder
from solo.data.readers.paths import READ_ERRORS, Paths, expand, natural, open_bytes, suffix
from solo.data.readers.registry import Examples, Ignored, Part, Reader, Unreadable, reader
from solo.data.readers.wording import kind, shown
from solo.data.record import Image, Place, Record, Turn
from solo.files import is_remote

_WHAT = "reader 'frames'"
CONTAINERS = frozenset((".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts"))
_TABLES = (".json", ".jsonl", ".ndjson")
_FOLDER = "folder"
_HIGHEST_RATE = 1_000_000  # frames per second
_LONGEST = 1_000_000_000  # seconds
_PLACEHOLDERS = ("<video>", "<image>")
_KEYS = frozenset(
    (
        *("id", "frames", "images", "image", "video", "times", "timestamps", "fps", "text", "caption"),
        *("conversations", "messages", "source", "data_source"),
    )
)


@reader("frames")
@dataclass(frozen=True)
class VideoFrames(Reader):
    """Videos whose frames are image files. The frames of a folder are sorted by the numbers in their names.

    path          a folder with one folder of frames per video, captioned by `<video>.txt` next to that folder or by
                  the only text file in it; or JSON or JSONL, whose examples have `frames`, a list of images, or
                  `video`, a folder of frames; `times` in seconds, or `fps`; and `text`, `caption` or `conversations`
    images        the folder that paths in JSON are relative to
    frames        maximum number of frames per video, evenly spaced from the first to the last
    fps           frames sampled per second, before `frames` limits them; needs the times of the frames
    source_fps    frame rate of folders, and of lists that do not give their own
    before_frame  text before each frame, such as `{time:.1f}s: ` or `Frame {number}: `

    Containers such as .mp4 are not decoded. Extract the frames first, for example with ffmpeg.
    """

    path: Paths
    images: str = "."
    frames: int = 8
    fps: float | None = None
    source_fps: float | None = None
    before_frame: str = ""

    def parts(self, size: int, limit: int | None) -> Iterator[Part]:
        """Splits JSON files by example and folders by video. `size` is the approximate number of frames per part."""
        self._check()
        size = max(1, size // self.frames)
        for path in expand(self.path, _WHAT):
            if suffix(path) in CONTAINERS:
                raise ConfigError(f"{_WHAT}: {_container(path)}")
            if suffix(path) in _TABLES:
                yield from json_files.parts(path, size, _WHAT)
                continue
            videos = [entry for entry in list_folder(path, "", _WHAT) if suffix(entry.name) != ".txt"]
            videos.sort(key=lambda entry: natural(entry.name))
            for start in range(0, len(videos), size):
                chunk = videos[start : start + size]
                # A folder's modification time changes when a frame is added or removed.
                folders = tuple(f"{path}/{entry.name}" for entry in chunk if entry.is_folder)
                span = tuple((entry.name, entry.fault, entry.is_folder) for entry in chunk)
                name = f"{os.path.basename(path.rstrip('/'))}/{chunk[0].name}"
                yield Part(name, folders, (_FOLDER, path, span))

    def read(self, part: Part) -> Examples:
        """Yields the videos of a part."""
        yield from self._folders(part) if part.span[0] == _FOLDER else self._table(part)

    def _folders(self, part: Part) -> Examples:
        _, root, videos = part.span
        for name, fault, is_folder in videos:
            place = Place(f"{root}/{name}")
            try:
                if fault or not is_folder:
                    raise ValueError(fault or _no_frames(place.file))
                entries = _list(place.file)
                texts = [entry.name for entry in entries if suffix(entry.name) == ".txt"]
                caption = _read_caption(place.file, texts)
                images = self._sample(_image_names(entries), None, self.source_fps)
                yield Record(name, (Turn("text", (*self._content(images, place.file), caption)),), place)
            except ValueError as error:
                yield Unreadable.because(error, name, place)

    def _table(self, part: Part) -> Examples:
        ignored: set[str] = set()
        for found in json_files.elements(part):
            if isinstance(found, Unreadable):
                yield found
                continue
            place, example = found
            name = f"{os.path.basename(place.file)}:{place.line}"
            try:
                if not isinstance(example, dict):
                    raise ValueError(f"an example must be a mapping, not {kind(example)}")
                yield from (Ignored(key, place) for key in sorted(example.keys() - _KEYS - ignored))
                ignored |= example.keys()
                name = record_id(example.get("id"), name)
                yield Record(name, self._turns(example), place)
            except ValueError as error:
                yield Unreadable.because(error, name, place)

    def _turns(self, example: dict[str, Any]) -> tuple[Turn, ...]:
        names, folder = self._frame_names(example)
        times = next((example[key] for key in ("times", "timestamps") if example.get(key) is not None), None)
        if times is not None:
            times = _check_times(times, len(names))
        rate = example.get("fps", self.source_fps)
        if rate is not None and not (isinstance(rate, int | float) and 0 < rate <= _HIGHEST_RATE):
            raise ValueError(f"'fps' must be a positive number up to {_HIGHEST_RATE:,}, not {shown(rate)}")
        frames = self._sample(names, times, rate)
        messages = example.get("conversations", example.get("messages"))
        if messages is not None:
            return conversation(*self._with_frames(messages, frames), load=lambda name: load_image(name, folder))
        text = next((example[key] for key in ("text", "caption") if key in example), None)
        if not isinstance(text, str) or not text.strip():
            raise ValueError("it has no 'text', 'caption' or 'conversations'")
        return (Turn("text", (*self._content(frames, folder), text)),)

    def _frame_names(self, example: dict[str, Any]) -> tuple[list[str], str]:
        """Returns the names of the frames, and the folder that contains them."""
        listed = next((example[key] for key in ("frames", "images", "image") if example.get(key)), None)
        if listed is not None:
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise ValueError("the frames must be a list of paths")
            return listed, self.images
        video = example.get("video")
        if not isinstance(video, str):
            raise ValueError("it has no 'frames', a list of images, and no 'video', a folder of them")
        folder = os.path.join(self.images, video)
        if suffix(folder) in CONTAINERS and not os.path.isdir(folder):
            raise ValueError(_container(folder))
        return _image_names(_list(folder)), folder

    def _sample(
        self, names: list[str], times: Sequence[float] | None, rate: float | None
    ) -> list[tuple[str, float | None]]:
        """Returns the names of the sampled frames, with their times in seconds."""
        if not names:
            raise ValueError("it has no frames")
        if times is None and rate is not None:
            times = [number / rate for number in range(len(names))]
        if times is not None and not times[-1] - times[0] <= _LONGEST:
            raise ValueError(f"the times of its frames span more than {_LONGEST:,} s")
        if times is None and (self.fps is not None or "{time" in self.before_frame):
            raise ValueError("the times of its frames are unknown: set source_fps")
        kept = list(range(len(names)))
        if self.fps is not None and times is not None:
            kept = _at_rate(times, self.fps)
        kept = _evenly(kept, self.frames)
        return [(names[number], None if times is None else times[number]) for number in kept]

    def _content(self, frames: list[tuple[str, float | None]], folder: str) -> Iterator[str | Image]:
        for number, (name, time) in enumerate(frames, start=1):
            if before := self._before(number, time):
                yield before
            yield load_image(name, folder)

    def _with_frames(self, messages: Any, frames: list[tuple[str, float | None]]) -> tuple[list[Any], list[str]]:
        """Returns messages with one placeholder per frame, and the names of the frames."""
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError("the messages must be a list of mappings")
        places = [
            (number, key)
            for number, message in enumerate(messages)
            for key in ("value", "content")
            if isinstance(message.get(key), str)
            for mark in _PLACEHOLDERS
            for _ in range(message[key].count(mark))
        ]
        block = "".join(self._before(number, time) + PLACEHOLDER for number, (_, time) in enumerate(frames, start=1))
        edited = [dict(message) for message in messages]
        if not places:
            speaker = next((m for m in edited if m.get("from", m.get("role")) in ("human", "user")), None)
            key = "value" if speaker is not None and "value" in speaker else "content"
            if speaker is None or not isinstance(speaker.get(key), str):
                raise ValueError("no user turn could begin with the frames")
            speaker[key] = f"{block}\n{speaker[key]}"
        elif len(places) == 1:
            number, key = places[0]
            for mark in _PLACEHOLDERS:
                edited[number][key] = edited[number][key].replace(mark, block)
        else:
            raise ValueError(
                f"{len(places)} placeholders for one video; one {' or '.join(_PLACEHOLDERS)} stands for it"
            )
        return edited, [name for name, _ in frames]

    def _before(self, number: int, time: float | None) -> str:
        return self.before_frame.format(number=number, time=time) if self.before_frame else ""

    def _check(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"{_WHAT}: frames must be at least 1, not {self.frames}")
        for name in ("fps", "source_fps"):
            if (value := getattr(self, name)) is not None and not 0 < value <= _HIGHEST_RATE:
                raise ConfigError(f"{_WHAT}: {name} must be positive, {_HIGHEST_RATE:,} at most, not {value}")
        try:
            self._before(1, 0.5)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise ConfigError(
                f"{_WHAT}: before_frame {self.before_frame!r} is not a text with {{time}} or {{number}}: {error}"
            ) from None


def _list(folder: str) -> list[Entry]:
    try:
        return list_folder(folder, "", "")
    except ConfigError as error:
        reason = str(error).removeprefix(": ")
        raise ValueError(reason if len(reason) <= 500 else f"{reason[:500]}...") from None


def _image_names(entries: list[Entry]) -> list[str]:
    """Returns the names of the images in natural order: `2.jpg` before `10.jpg`."""
    found = [entry for entry in entries if not entry.is_folder and suffix(entry.name) in IMAGE_SUFFIXES]
    if fault := next((f"{entry.name}: {entry.fault}" for entry in found if entry.fault), None):
        raise ValueError(fault)
    return sorted((entry.name for entry in found), key=natural)


def _read_caption(folder: str, inside: list[str]) -> str:
    beside = f"{folder}.txt"
    paths = [beside] if not inside or os.path.exists(beside) else [f"{folder}/{name}" for name in inside]
    if len(paths) != 1 or not (is_remote(beside) or os.path.exists(paths[0])):
        raise ValueError(f"it has {len(inside)} captions: there must be {folder}.txt, or one .txt in the folder")
    try:
        with open_bytes(paths[0]) as file:
            text = file.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{paths[0]} is not UTF-8: {error.reason} at byte {error.start}") from None
    except READ_ERRORS as error:
        raise ValueError(f"cannot read {paths[0]}: {error}") from None
    if not text:
        raise ValueError(f"its caption is empty: {paths[0]}")
    return text


def _check_times(times: Any, count: int) -> list[float]:
    if not isinstance(times, list) or len(times) != count or not all(map(_is_time, times)):
        raise ValueError(f"the times must be a list of numbers, one for each of the {count} frames")
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise ValueError("the times of its frames do not increase")
    return [float(time) for time in times]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and -_LONGEST <= value <= _LONGEST  # false for NaN and infinity


def _at_rate(times: Sequence[float], fps: float) -> list[int]:
    """Returns the indexes of the frames shown at multiples of 1 / fps seconds after the first, each one once."""
    # Frame i is shown at the multiples k with begins[i] <= k < begins[i + 1].
    begins = [max(0.0, (time - times[0] - 1e-6) * fps) for time in times]
    last = len(times) - 1
    found = [number for number in range(last) if math.ceil(begins[number]) < begins[number + 1]]
    return [*found, last] if math.ceil(begins[last]) <= (times[-1] - times[0]) * fps + 1e-6 else found


def _evenly(numbers: list[int], most: int) -> list[int]:
    """Returns `most` evenly spaced numbers, including the first and the last."""
    if len(numbers) <= most:
        return numbers
    last = len(numbers) - 1
    return [numbers[round(index * last / max(1, most - 1))] for index in range(most)]


def _no_frames(path: str) -> str:
    return _container(path) if suffix(path) in CONTAINERS else "it is a file, not a folder of frames"


def _container(path: str) -> str:
    stem = os.path.splitext(path)[0]
    return (
        f"video containers are not decoded: {path}; make frames of it first, as with"
        f" `ffmpeg -i {path} -vf fps=1 {stem}/frame_%05d.jpg`"
    )
