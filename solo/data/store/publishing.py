"""Uploads the files that a preparation writes to a mirror, and finds the parts that are complete here or in the bucket.

A manifest is uploaded after the files that it names, and `source.json` after everything else, so uploads are not lost
if the process is killed. With a local data folder, these functions do nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from solo.config import ConfigError
from solo.data.store.bucket import side_by_side
from solo.data.store.checksums import FileSum, fault
from solo.data.store.description import Description
from solo.data.store.mirror import RECORD, Mirror, listed
from solo.data.store.part import PartManifest
from solo.data.store.safety import MARKER

_MANIFEST = re.compile(r"[0-9a-f]{16}(\.[0-9a-f]{16})?\.json")


def begin(source: Path) -> None:
    """Synchronizes a source's parts with the bucket before the source is prepared in the mirror.

    If a file of a part is neither here nor in the bucket, its manifests are deleted, so that the part is made again.
    Parts that were finished here but not uploaded are uploaded.

    Args:
        source: the source's folder, which must be locked.

    Raises:
        ConfigError: the folder in the bucket contains files that solo did not make, or cannot be reached.
    """
    if (mirror := Mirror.around(source)) is None:
        return
    _claim(mirror, source, "source.json", f"source {source.name!r}")
    mirror.pull_manifests(source)
    parts = source / "parts"
    sizes = mirror.sizes(parts)
    for manifest in sorted(path for path in parts.glob("*.json") if _MANIFEST.fullmatch(path.name)):
        files = _files(manifest) or {}
        if any(sizes.get(name) != each.size and fault(parts / name, each) for name, each in files.items()):
            manifest.unlink()
        else:
            _upload_part(mirror, manifest, files, sizes)


def publish_part(parts: Path, manifests: Sequence[str]) -> None:
    """Uploads the layers of a part that has just been made.

    Args:
        parts: the source's `parts` folder.
        manifests: file names of the layers' manifests without `.json`, in the order in which they were written.
    """
    if (mirror := Mirror.around(parts.parent)) is None:
        return
    for name in manifests:
        manifest = parts / f"{name}.json"
        _upload_part(mirror, manifest, _files(manifest) or {}, {})
    mirror.keep_within_limit()


def publish_source(source: Path, description: Description) -> None:
    """Uploads the files that changed when the parts were joined, and then the description.

    Raises:
        ConfigError: a file of a part is neither here nor in the bucket.
    """
    if (mirror := Mirror.around(source)) is None:
        return
    parts, sizes = source / "parts", mirror.sizes(source / "parts")
    is_first = not mirror.has(source / "source.json")
    for part in description.parts:
        for name in (part.name, f"{part.name}.{description.tokens}"):
            _upload_part(mirror, parts / f"{name}.json", _files(parts / f"{name}.json") or {}, sizes)
        manifest = PartManifest.read(parts, part.name)
        if manifest is not None and manifest.dropped:  # another preparation may have dropped different images
            mirror.upload(parts / f"{part.name}.json")
    side_by_side(mirror.upload, [description.index_folder(source) / name for name in description.index])
    for name in ("quarantine.jsonl", "filtered.jsonl", "source.json", "inputs.json"):
        if (source / name).exists():
            mirror.upload(source / name)
    if is_first:
        _remove_copies(mirror, source, description, sizes)
    mirror.keep_within_limit()


def publish_tokenizer(data: Path) -> None:
    """Uploads the tokenizer of a data folder."""
    place = data / "tokenizer"
    if (mirror := Mirror.around(data / "sources" / "any")) is None:
        return
    _claim(mirror, place, RECORD, "the tokenizer")
    record = place / RECORD
    for name in [*listed(record.read_bytes()), RECORD]:
        mirror.upload(place / name)


def _upload_part(mirror: Mirror, manifest: Path, files: Mapping[str, FileSum], sizes: Mapping[str, int]) -> None:
    """Uploads the files of a layer that are missing from the bucket, and then its manifest."""
    missing = [manifest.parent / name for name, each in files.items() if sizes.get(name) != each.size]
    for path in missing:
        if (wrong := fault(path, files[path.name])) is not None:
            raise ConfigError(f"{wrong}; run: solo prepare CONFIG")
        mirror.upload(path)
    if missing or sizes.get(manifest.name) != manifest.stat().st_size:
        mirror.upload(manifest)


def _remove_copies(mirror: Mirror, source: Path, description: Description, sizes: Mapping[str, int]) -> None:
    """Deletes image files of these parts that were uploaded before it was known which images the parts share.

    It does so only after the first preparation: otherwise a run elsewhere may read files of an earlier `source.json`.
    """
    named = {name for part in description.parts for name in part.files}
    parts = {part.name for part in description.parts}
    for name in sizes:
        if name.endswith(".images") and name.partition(".")[0] in parts and name not in named:
            mirror.remove(source / "parts" / name)


def _claim(mirror: Mirror, place: Path, record: str, what: str) -> None:
    """Marks a folder of the bucket as made by solo, or checks that it is."""
    found = mirror.sizes(place)
    if MARKER in found:
        return
    if found and record not in found:
        shown = ", ".join(sorted(found)[:3])
        raise ConfigError(
            f"{what}: {mirror.url(place)} is in the way: solo did not make it, and it holds {shown}; move it, or choose"
            " another name or data.folder"
        )
    mirror.upload(place / MARKER)


def _files(manifest: Path) -> dict[str, FileSum] | None:
    """Returns the files that a manifest of either layer names; None if the manifest cannot be read."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return {f"{manifest.stem}.{end}": FileSum(*each) for end, each in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
