"""Small vocabularies in the form in which other projects publish theirs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from solo.config import TokenizerConfig
from solo.data.text import SPECIAL_TOKENS, train_tokenizer

TEXTS = [topics[name] for name in sorted(topics)[:30]]


@cache
def foreign_model(size: int = 500) -> bytes:
    """A SentencePiece model like Mistral's, of `size` - 7 tokens: `<unk>`, `<s>` and `</s>`, but none of ours."""
    ours = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=size))
    proto = sentencepiece_model_pb2.ModelProto.FromString(ours._model)  # type: ignore[attr-defined]
    kept = [entry for entry in proto.pieces if entry.piece not in SPECIAL_TOKENS.values()]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    return bytes(proto.SerializeToString())


@cache
def byte_level_json(size: int = 400) -> str:
    """A byte-level BPE `tokenizer.json` like Qwen's: `<|endoftext|>` = size, `<|im_start|>`, `<|im_end|>`; then
    `<tool>`, which is not special."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer.to_str()


def write_repository(folder: Path, config: dict | None = None, **files: str | bytes | dict) -> Path:
    """A folder with `tokenizer_config.json` and other files; `tokenizer_json` stands for `tokenizer.json`."""
    folder.mkdir(exist_ok=True)
    contents = files | ({"tokenizer_config_json": config} if config is not None else {})
    for name, content in contents.items():
        stem, _, ending = name.rpartition("_")
        data = content if isinstance(content, bytes) else content if isinstance(content, str) else json.dumps(content)
        path = folder / f"{stem}.{ending}"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder
