"""Detects the kind of a file from its first bytes, because many files have a wrong suffix."""

from __future__ import annotations

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run: git lfs pull)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\x04\x22\x4d\x18", "an LZ4 file (decompress it first: lz4 -d)"),
    (b"PK\x03\x04", "a zip file (unpack it first)"),
    (b"PK\x05\x06", "an empty zip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file (unpack it first)"),
    (b"Rar!", "a RAR file (unpack it first)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"%PDF-", "a PDF file"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"\x80\x02", "a Python pickle, which is never read"),
    (b"\x80\x03", "a Python pickle, which is never read"),
    (b"\x80\x04", "a Python pickle, which is never read"),
    (b"\x80\x05", "a Python pickle, which is never read"),
)
_READERS = {"a Parquet file": "parquet", "a tar archive": "webdataset"}


def file_kind(head: bytes) -> str | None:
    """Returns the kind of a file, such as "a Parquet file", from its first 512 bytes; None if it may be text."""
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    return None


def advice(kind: str) -> str:
    """Returns advice on how to read a kind of file, to append to an error message; empty if there is none."""
    return f"; use reader {_READERS[kind]!r}" if kind in _READERS else ""
