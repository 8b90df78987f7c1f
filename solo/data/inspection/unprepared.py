"""Shows a source without a config: its first records, tokenized by a small tokenizer trained on them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from solo.config import Config, ConfigError, load_config
from solo.data.inspection.page import render
from solo.data.store.prepare import Prepared, prepare

NAME = "source"
_RECORDS = 200
_VOCABULARY = 2000
_TOO_LITTLE_TEXT = re.compile(r"it supports at most (\d+)")


def render_source(path: str, overrides: Sequence[str], samples: int) -> str:
    """Returns a page with the first records of a file, folder or glob. Its content determines the reader.

    Args:
        path: path of the source, as in `data.sources`.
        overrides: `key.path=value`; the source is named `source`, so `data.sources.source.options.images=pictures` sets
            an option of its reader.
        samples: number of documents to show.

    Raises:
        ConfigError: the source cannot be read.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            config, prepared = _prepare(folder, path, overrides, _VOCABULARY)
        except ConfigError as error:
            limit = _TOO_LITTLE_TEXT.search(str(error))
            if limit is None:
                raise
            config, prepared = _prepare(folder, path, overrides, int(limit[1]))
        config = config.model_copy(update={"name": path})
        return render(config, prepared, samples)


def _prepare(folder: Path, path: str, overrides: Sequence[str], vocabulary: int) -> tuple[Config, Prepared]:
    data = {
        "name": "inspect",
        "data": {
            "folder": str(folder / "data"),
            "tokenizer": {"vocab_size": vocabulary, "max_characters": 400_000},
            "sources": {NAME: {"options": {"path": path}, "limit": _RECORDS}},
        },
        "model": {"width": 8, "layers": 1, "heads": 1, "kv_heads": 1, "ffn_width": 8},
    }
    file = folder / "inspect.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    config = load_config(file, overrides)
    return config, prepare(config)
