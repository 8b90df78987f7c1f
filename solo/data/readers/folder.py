"""Image classification folders, `<path>/<class>/<image>`, such as ImageNet in SOLO's first stage."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from solo.config import ConfigError
from solo.data.readers.captions import Form, labelled
from solo.data.readers.class_names import WORDNET_ID, read_class_names
from solo.data.readers.image_files import load_image
from solo.data.readers.listing import Entry, list_folder, walk
from solo.data.readers.registry import Examples, Part, Reader, Unreadable, reader
from solo.data.record import Place, Record

_WHAT = "reader 'folder'"
_SHOWN = 5
SPLITS = frozenset(
    ("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "holdout", "trainval")
)


@reader("folder")
@dataclass(frozen=True)
class Folder(Reader):
    """A caption, or a question and an answer, for every image in every class folder.

    Class folders and files are sorted by name. Links are followed; hidden files and folders are skipped. Class folders
    may have subfolders. A file outside the class folders has no class and is unreadable.

    path          the folder that contains the class folders
    names         class names, a file or a list (see `read_class_names`), for folders that are named after WordNet ids
                  or labels. By default the class name is the folder's name, with `_` and `-` replaced by spaces
    form          caption: the template alone; question: `question`, with the template as the answer
    template      the text, in which `{name}` is replaced by the class name
    split_names   treat folders called `train`, `val` or `test` as classes
    """

    path: str
    form: Form = "caption"
    template: str = "{name}"
    question: str = "What is in the image?"
    names: str | tuple[str, ...] | None = None
    split_names: bool = False

    def about(self) -> str:
        """Returns the number of classes and the first of them."""
        names = list(self._names.values())
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        return f"{len(names):,} {'class' if len(names) == 1 else 'classes'}: {shown}"

    def parts(self, size: int, limit: int | None) -> Iterator[Part]:
        """Splits after files chosen by the hash of their name, so that adding or removing a file changes one part."""
        found: list[tuple[str, str]] = []  # files, and folders that cannot be read
        if "{name}" not in self.template:
            raise ConfigError(f"{_WHAT}: template {self.template!r} lacks {{name}}")
        for entry in islice(self._entries(), limit):
            found.append((entry.name, entry.fault))
            if zlib.crc32(entry.name.encode(errors="surrogateescape")) % size == 0 or len(found) == 4 * size:
                yield _part(found)
                found = []
        if found:
            yield _part(found)

    def read(self, part: Part) -> Examples:
        """Yields the records of a part. Its span is a (name, fault) pair per file."""
        for name, fault in part.span:
            place = Place(f"{self.path.rstrip('/')}/{name}")
            class_name = self._names.get(name.split("/")[0])
            try:
                if fault:
                    raise ValueError(fault)
                image = load_image(place.file)
            except ValueError as error:
                yield Unreadable.because(error, name, place)
                continue
            text = self.template.replace("{name}", str(class_name))
            yield Record(name, labelled(image, text, self.form, self.question), place)

    def _entries(self) -> Iterator[Entry]:
        """Yields every file below the folder. A file outside the class folders gets a fault, as does an empty class."""
        for entry in self._top:
            if not entry.is_folder:
                yield Entry(entry.name, entry.fault or "it is in no class folder")
                continue
            inside = walk(f"{self.path.rstrip('/')}/{entry.name}", entry.name)
            first = next(inside, None)
            yield first or Entry(entry.name, "the class folder holds no file")
            yield from inside

    @cached_property
    def _top(self) -> list[Entry]:
        return list_folder(self.path, "", _WHAT)

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names by class folder."""
        classes = [entry.name for entry in self._top if entry.is_folder]
        if not classes:
            raise ConfigError(f"{_WHAT}: {self.path} has no class folders; it should hold one folder per class")
        _refuse_splits(self, classes)
        if self.names is None:
            _refuse_wordnet(classes)
            return {name: name.replace("_", " ").replace("-", " ") for name in classes}
        known = read_class_names(self.names, _WHAT)
        found = {name: known.find(name, number, len(classes)) for number, name in enumerate(classes)}
        missing = [name for name, value in found.items() if value is None]
        if missing:
            shown = ", ".join(missing[:_SHOWN])
            raise ConfigError(f"{_WHAT}: names: no name for {len(missing)} of {len(classes)} class folders: {shown}")
        return {name: value for name, value in found.items() if value is not None}


def _part(found: list[tuple[str, str]]) -> Part:
    return Part(found[0][0], (), tuple(found))


def _refuse_splits(options: Folder, classes: list[str]) -> None:
    splits = [name for name in classes if name.lower() in SPLITS]
    if not options.split_names and (len(splits) > 1 or len(splits) == len(classes)):
        raise ConfigError(
            f"{_WHAT}: the classes would be {', '.join(splits)}, which are names of splits; set path to"
            f" {options.path.rstrip('/')}/{splits[0]}, or split_names: true if they are classes"
        )


def _refuse_wordnet(classes: list[str]) -> None:
    ids = [name for name in classes if WORDNET_ID.fullmatch(name)]
    if 2 * len(ids) > len(classes):
        raise ConfigError(
            f"{_WHAT}: the class folders are WordNet ids ({', '.join(ids[:3])}), which would be the captions; set names"
            " to a file such as LOC_synset_mapping.txt, with `n01440764 tench, Tinca tinca` in each line"
        )
