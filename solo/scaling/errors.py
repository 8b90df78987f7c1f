"""Errors of the operating system as messages for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from solo.config import ConfigError


@contextmanager
def os_errors_explained() -> Iterator[None]:
    """Raises ConfigError for files that cannot be read or written: a read-only folder, a full disk, a folder's name."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename2 or error.filename or "cannot read or write"
        raise ConfigError(f"{place}: {error.strerror}") from None
