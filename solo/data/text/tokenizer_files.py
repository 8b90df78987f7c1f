"""Opens tokenizer files of any supported format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from solo.data.text import huggingface, sentencepiece_model
from solo.data.text.huggingface import added_tokens, from_repository
from solo.data.text.repository import read_repository_tokens
from solo.data.text.sentencepiece_model import SentencePieceTokenizer, with_repository_tokens
from solo.data.text.tokenizer import Tokenizer
from solo.files import lfs_pointer


def open_tokenizer(path: str | Path) -> Tokenizer:
    """Opens a SentencePiece model, a `tokenizer.json`, or a folder of a Hugging Face repository with one of them.

    In a folder, `tokenizer.model` takes precedence over the `tokenizer.json` that was converted from it, unless
    `tokenizer.model` has another format (Llama 3). Tokens that the repository's smaller files append or rename, or that
    the `tokenizer.json` appends, are included. A `tokenizer.json` always needs the files next to it; if the path is a
    SentencePiece model, only that file is read.

    Raises:
        OSError: the path cannot be read.
        ValueError: the tokenizer is missing or incomplete; the message names the path.
    """
    path = Path(path)
    files = (path / sentencepiece_model.FILE, path / huggingface.FILE) if path.is_dir() else (path,)
    if pointer := next((found for file in files if file.is_file() and (found := lfs_pointer(file))), None):
        raise ValueError(pointer)
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.suffix == ".json":
            return from_repository(path.read_text(encoding="utf-8"), read_repository_tokens(path.parent))
        return SentencePieceTokenizer(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _open_folder(folder: Path) -> Tokenizer:
    found = read_repository_tokens(folder)
    model, text = folder / sentencepiece_model.FILE, folder / huggingface.FILE
    if model.is_file():
        try:
            tokenizer = SentencePieceTokenizer(with_repository_tokens(model.read_bytes(), found))
            more = added_tokens(text.read_text(encoding="utf-8")) if text.is_file() else {}
            # Fine-tuned models may append tokens only to the tokenizer.json.
            if appended := {number: token for number, token in more.items() if number >= tokenizer.vocab_size}:
                found = replace(found, added={**appended, **found.added})
                tokenizer = SentencePieceTokenizer(with_repository_tokens(model.read_bytes(), found))
            return tokenizer
        except ValueError:
            if not text.is_file():
                raise
    if text.is_file():
        return from_repository(text.read_text(encoding="utf-8"), found)
    raise ValueError(f"it holds neither {model.name} nor {text.name}")
