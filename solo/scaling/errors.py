"""Turns operating system errors into messages for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from solo.config import ConfigError


@contextmanager
def os_errors_explained() -> Iterator[None]:
    """Raises ConfigError if a file cannot be read or written: read-only folder, full disk, path of a folder."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename2 or error.filename or "cannot read or write"
        raise ConfigError(f"{place}: {error.strerror}") from None
