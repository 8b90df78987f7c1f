"""WebDataset: tar archives in which consecutive files with the same base name form one sample.

`a/17.jpg`, `a/17.txt` and `a/17.json` are the members `jpg`, `txt` and `json` of the sample `a/17`. A key ends at the
first dot of the file name, as in the library `webdataset` and in the output of img2dataset and Megatron.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from solo.config import ConfigError
from solo.data.readers.archives import SUFFIXES, DamagedArchiveError, can_split, members
from solo.data.readers.examples import IMAGES as NAMED_IMAGES
from solo.data.readers.examples import MESSAGES, OTHER_IMAGES, read_example
from solo.data.readers.image_files import load_image
from solo.data.readers.json_files import parse
from solo.data.readers.paths import Paths, expand, natural
from solo.data.readers.registry import Examples, Ignored, Part, Reader, Unreadable, reader
from solo.data.readers.text_files import short_names
from solo.data.record import Image, Place, Record, Turn
from solo.files import is_remote

IMAGES = frozenset(
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"),
        *("jp2", "avif", "heic", "heif", "ico", "tga", "svg", "img", "image"),
    ]
)
CAPTIONS = ("txt", "caption", "text", "cap")
CAPTION_KEYS = ("caption", "text", "txt")
_NAMES_IMAGES = (*NAMED_IMAGES, *OTHER_IMAGES)
_META = re.compile(r"__[^/]*__(/|$)")
_NUMBERED = re.compile(r"(.*?)(\d+)\.[^.]+")
_SPLIT_ABOVE = 1 << 30  # bytes of an archive; smaller archives are one part each
_MOST_IGNORED = 20  # kinds of ignored members that a part reports
_Conversation = Mapping[str, Any]


@reader("webdataset")
@dataclass(frozen=True)
class WebDataset(Reader):
    """Tar shards, plain or compressed. A folder stands for the archives in it.

    The text is a caption, or a conversation in LLaVA's or OpenAI's format in a JSON member, in which each `<image>`
    placeholder stands for the next image.

    image     image members in order, such as [left.jpg, right.jpg]; `*.jpg` stands for all that match. By default the
              only image, or all images if they are numbered: 0.jpg, 1.png
    text      the member that contains the text, such as caption; by default a conversation in json, else txt or
              caption, else a caption in json
    json_key  the key of the text or conversation in a JSON member
    """

    path: Paths
    image: Paths | None = None
    text: str | None = None
    json_key: str | None = None

    def parts(self, size: int, limit: int | None) -> Iterable[Part]:
        """Returns one part per archive. Large uncompressed archives are split between examples."""
        archives = self._archives()
        for path, name in zip(archives, short_names(archives), strict=True):
            if _is_large(path) and can_split(path):
                yield from _split(path, name, size, limit)
            else:
                yield Part(name, (path,))

    def _archives(self) -> list[str]:
        found: list[str] = []
        for path in expand(self.path, "reader 'webdataset'"):
            if is_remote(path) or os.path.isfile(path):
                found.append(path)
            elif not os.path.isdir(path):
                raise ConfigError(f"reader 'webdataset': {path} is neither a file nor a folder")
            else:
                inside = [entry.path for entry in os.scandir(path) if entry.name.lower().endswith(SUFFIXES)]
                if not inside:
                    raise ConfigError(f"reader 'webdataset': {path} holds no tar archives")
                found += sorted(inside, key=natural)
        return found

    def read(self, part: Part) -> Examples:
        """Yields one example per key."""
        ignored: set[str] = set()
        for sample in samples(part, self._wanted):
            if isinstance(sample, Unreadable | Ignored):
                yield sample
                continue
            place = Place(part.files[0], sample.number)
            try:
                turns, unread = self._turns(sample)
            except ValueError as error:
                yield Unreadable.because(error, sample.id, place)
                continue
            for kind in unread:
                if kind not in ignored and len(ignored) < _MOST_IGNORED:
                    ignored.add(kind)
                    yield Ignored(kind, place)
            yield Record(sample.id, turns, place)

    def _wanted(self, name: str) -> bool:
        named = split_name(name)
        return named is not None and (self._may_be_image(named[1]) or self._may_be_text(named[1]))

    def _may_be_image(self, suffix: str) -> bool:
        if self.image is None:
            return suffix.rsplit(".", 1)[-1] in IMAGES
        return any(fnmatchcase(suffix, pattern) for pattern in self._patterns())

    def _may_be_text(self, suffix: str) -> bool:
        if self.text is None:
            return suffix.rsplit(".", 1)[-1] in (*CAPTIONS, "json")
        return suffix == self.text.lower()

    def _patterns(self) -> list[str]:
        named = [self.image] if isinstance(self.image, str) else self.image or ()
        return [pattern.lower() for pattern in named]

    def _turns(self, sample: Sample) -> tuple[tuple[Turn, ...], list[str]]:
        """Returns the turns of a sample, and the members and keys that were not read."""
        if sample.faults:
            raise ValueError("; ".join(sample.faults))
        images = self._images(sample)
        member, value = self._text(sample)
        unread = [suffix for suffix in sample.members if suffix not in images and suffix != member]
        pictures = [Image(sample.members[suffix] or b"") for suffix in images]
        if not isinstance(value, str):
            # The members replace the images that the JSON names.
            example = {key: item for key, item in value.items() if key not in _NAMES_IMAGES} if pictures else value
            record = read_example(example, sample.key, None, unread.append, images=pictures or None, load=_load)
            return record.turns, unread
        if not pictures:
            raise ValueError(f"it has no image; {sample}")
        if not value.strip():
            raise ValueError(f"its text {member} is empty")
        return (Turn("text", (*pictures, value)),), unread

    def _images(self, sample: Sample) -> list[str]:
        """Returns the members that are the images of a sample, in order."""
        if self.image is not None:
            found = []
            for pattern in self._patterns():
                matches = [suffix for suffix in sample.members if fnmatchcase(suffix, pattern)]
                if not matches:
                    raise ValueError(f"it has no member {pattern}; {sample}")
                found += sorted(matches, key=natural)
            return found
        found = [suffix for suffix in sample.members if self._may_be_image(suffix)]
        if len(found) > 1 and not _are_numbered(found):
            raise ValueError(f"it has several images, {', '.join(found)}: name those to read, in order, with `image`")
        return sorted(found, key=natural)

    def _text(self, sample: Sample) -> tuple[str, str | _Conversation]:
        """Returns the member that contains the text of a sample, and its caption or conversation."""
        if self.text is not None:
            member = self.text.lower()
            if member not in sample.members:
                raise ValueError(f"it has no member {member}; {sample}")
            return member, self._read_text(member, sample)
        in_json = sample.only(("json",))
        value = self._in_json(parse_member(in_json, sample.members[in_json])) if in_json else None
        caption = sample.only(CAPTIONS)
        if in_json and (self.json_key is not None or (value is not None and not isinstance(value, str))):
            return in_json, self._required(value, in_json)
        if caption:
            return caption, _decode(caption, sample.members[caption])
        if in_json and value is not None:
            return in_json, value
        raise ValueError(f"it has no text; {sample}")

    def _read_text(self, member: str, sample: Sample) -> str | _Conversation:
        data = sample.members[member]
        if member.rsplit(".", 1)[-1] != "json":
            return _decode(member, data)
        return self._required(self._in_json(parse_member(member, data)), member)

    def _required(self, value: str | _Conversation | None, member: str) -> str | _Conversation:
        if value is None:
            keys = [self.json_key] if self.json_key else [*MESSAGES, *CAPTION_KEYS]
            raise ValueError(f"its {member} has no {' or '.join(keys)}")
        return value

    def _in_json(self, found: Any) -> str | _Conversation | None:
        """Returns the caption or conversation in parsed JSON, or None if there is none."""
        if self.json_key is not None:
            found = found.get(self.json_key) if isinstance(found, Mapping) else None
            if found is not None and not isinstance(found, str | list):
                raise ValueError(f"{self.json_key} in its JSON is neither a text nor a list of messages")
            return {"conversations": found} if isinstance(found, list) else found
        if isinstance(found, list):
            return {"conversations": found}
        if not isinstance(found, Mapping):
            return None
        if any(found.get(key) is not None for key in MESSAGES):
            return found
        if isinstance(found.get("text_list"), list):
            raise ValueError("its JSON is a document of texts and images; use reader 'interleaved'")
        return next((found[key] for key in CAPTION_KEYS if isinstance(found.get(key), str)), None)


# ------------------------------------------------------------------------------------------- samples


@dataclass
class Sample:
    """Consecutive members with the same key. `members` maps lower-case suffixes to contents."""

    key: str
    number: int
    archive: int = 0
    members: dict[str, bytes | None] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The key as valid Unicode."""
        return self.key.encode(errors="backslashreplace").decode()

    def only(self, suffixes: Iterable[str]) -> str | None:
        """Returns the first of these suffixes that is a member; else the only member ending in one (`meta.json`)."""
        exact = next((suffix for suffix in suffixes if suffix in self.members), None)
        ending = [suffix for suffix in self.members if suffix.rsplit(".", 1)[-1] in suffixes]
        return exact or (ending[0] if len(ending) == 1 else None)

    def __str__(self) -> str:
        shown = [*self.members][:6] + ["..."] * (len(self.members) > 6)
        note = "; a name ends at its first dot" if any(suffix.count(".") for suffix in self.members) else ""
        return f"its members are {', '.join(shown)}, and others of its name must follow them in the archive{note}"


def _are_numbered(suffixes: list[str]) -> bool:
    """Returns whether the members differ only in a number: `0.jpg` and `1.png`, or `img0.jpg` and `img1.jpg`."""
    found = [match for match in map(_NUMBERED.fullmatch, suffixes) if match is not None]
    numbers = {int(match[2]) for match in found}
    return len(numbers) == len(suffixes) and len({match[1] for match in found}) == 1


def split_name(name: str) -> tuple[str, str] | None:
    """Returns the key and suffix of a member, or None for a file that belongs to no sample.

    The suffix begins at the first dot of the file name, so folder names may contain dots. Hidden files, files without
    a dot and files in folders such as `__meta__` belong to no sample.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    if not stem or not dot or _META.match(name):
        return None
    return folder + slash + stem, suffix.lower()


def samples(part: Part, wanted: Callable[[str], bool]) -> Iterator[Sample | Unreadable | Ignored]:
    """Yields the samples of a part of an archive. If the archive is damaged, the reason follows the last sample.

    Args:
        part: part of the archive.
        wanted: returns whether the contents of a member are needed, given its name.
    """
    path = part.files[0]
    number, offset, stop = part.span or (1, 0, None)
    sample: Sample | None = None
    nameless: set[str] = set()
    try:
        for member in members(path, wanted, (number, offset), stop):
            named = split_name(member.name)
            if named is None:
                kind = "hidden files" if "/." in f"/{member.name}" else "files that belong to no example"
                if kind not in nameless:
                    nameless.add(kind)
                    yield Ignored(kind, Place(path, member.number))
                continue
            key, suffix = named
            if sample is None or (sample.archive, sample.key) != (member.archive, key):
                if sample is not None:
                    yield sample
                sample = Sample(key, member.number, member.archive)
            if suffix in sample.members:
                sample.faults.append(f"its member {suffix} appears more than once")
            if member.fault is not None:
                sample.faults.append(member.fault)
            sample.members[suffix] = member.data
    except DamagedArchiveError as damage:
        cut = split_name(damage.member) if damage.member else None
        if sample is not None and cut is not None and cut[0] != sample.key:
            yield sample
            sample = Sample(cut[0], sample.number + len(sample.members))
        where = sample or Sample(os.path.basename(path), number)
        yield Unreadable(where.id, f"{damage}; what follows is missing", Place(path, where.number))
        return
    if sample is not None:
        yield sample


def _is_large(path: str) -> bool:
    try:
        return not is_remote(path) and os.path.getsize(path) > _SPLIT_ABOVE
    except OSError:
        return False  # `read` reports why


def _split(path: str, name: str, size: int, limit: int | None) -> Iterator[Part]:
    """Splits an archive into parts of `size` samples. Everything after the first `limit` samples is one part."""
    begins: list[tuple[int, int]] = []
    samples, last = 0, (0, "")
    try:
        for member in members(path, lambda name: False):
            named = split_name(member.name)
            if named is not None and (member.archive, named[0]) != last:
                last = (member.archive, named[0])
                if samples % size == 0:
                    begins.append((member.number, member.offset))
                if samples == limit:
                    break
                samples += 1
    except DamagedArchiveError:
        pass  # reading the last part raises it again
    if not begins:
        yield Part(name, (path,))
        return
    begins[0] = (1, 0)
    for (number, offset), after in zip(begins, [*begins[1:], None], strict=True):
        yield Part(f"{name}:{number}", (path,), (number, offset, after and after[1]))


# --------------------------------------------------------------------------------------------- texts


def _decode(member: str, data: bytes | None) -> str:
    try:
        return (data or b"").decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"its {member} is not valid UTF-8: {error.reason} at byte {error.start}") from None


def parse_member(member: str, data: bytes | None) -> Any:
    """Parses a JSON member. Raises ValueError if it is invalid."""
    try:
        return parse((data or b"").removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise ValueError(f"its {member}: {error}") from None


def _load(value: Any) -> Image:
    """Returns an image contained in the sample. The contents of an archive must not name files to open."""
    if isinstance(value, Image) or (isinstance(value, str) and value[:5].lower() == "data:"):
        return load_image(value)
    raise ValueError(f"it names an image outside its archive: {value!r:.200}")
