"""`source.json`, which marks a prepared source as complete and describes its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from solo.data.store.checksums import FileSum
from solo.data.store.part_files import FORMAT
from solo.files import write_whole


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A part of a source.

    name         fingerprint, the first component of its file names
    part         name of the reader's part
    records      records in its `.records`, including excluded ones
    files        size and checksum of each of its files that the source needs
    """

    name: str
    part: str
    records: int
    files: dict[str, FileSum]


@dataclass(frozen=True, slots=True)
class Description:
    """The content of `source.json`. Token counts exclude image delimiters and row tokens.

    fingerprint       fingerprint of everything that the content was made from (`solo.data.store.prepare`)
    content           fingerprint of the parts, the tokens and the excluded records; names the folder of the index
    tokens            fingerprint of tokenizer and template; part of the names of token files
    width             bytes per stored token
    examples          examples that were read: records, quarantined examples and filtered records
    records           records that can be sampled
    quarantined       examples that were left out because they are unusable
    reasons           number of quarantined examples by kind of reason
    filtered          records that the source's settings left out, by setting; `deduplicate` for duplicates
    images            images of all records
    distinct_images   distinct images of all parts
    text_tokens       text tokens of all records
    supervised_tokens text tokens that the model learns to predict
    unknown_tokens    unknown tokens (characters that the vocabulary lacks) of all parts
    parts             parts in record order
    index             size and checksum of every file of the index
    """

    fingerprint: str
    content: str
    tokens: str
    width: int
    examples: int
    records: int
    quarantined: int
    reasons: dict[str, int]
    filtered: dict[str, int]
    images: int
    distinct_images: int
    text_tokens: int
    supervised_tokens: int
    unknown_tokens: int
    parts: list[PartEntry]
    index: dict[str, FileSum]

    @classmethod
    def read(cls, folder: Path) -> Description | None:
        """Returns the description in a source's folder; None if it is missing or has another format."""
        try:
            found = json.loads((folder / "source.json").read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                return None
            found["index"] = _sums(found["index"])
            found["parts"] = [PartEntry(**{**part, "files": _sums(part["files"])}) for part in found["parts"]]
            return cls(**found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Writes `source.json` atomically."""
        write_whole(folder / "source.json", json.dumps({"format": FORMAT, **asdict(self)}) + "\n")

    @property
    def order(self) -> str:
        """16 hexadecimal digits that identify the order of the records, their lengths and their image sizes.

        They do not depend on the split into parts, so `data.records_per_shard` may change.
        """
        sums = [self.index[f"{name}.npy"] for name in ("runs", "record_run", "image_size")]
        return hashlib.sha256(repr([tuple(each) for each in sums]).encode()).hexdigest()[:16]

    def index_folder(self, folder: Path) -> Path:
        """Returns the index folder inside a source's folder."""
        return folder / "index" / self.content


def _sums(files: dict[str, list[int]]) -> dict[str, FileSum]:
    return {name: FileSum(*values) for name, values in files.items()}
