"""Trains a SentencePiece model on the text of the sources."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import sentencepiece

from solo.config import TokenizerConfig
from solo.data.text.sentencepiece_model import SentencePieceTokenizer
from solo.data.text.tokenizer import Tokenizer, expand_tokens, extend_tokenizer

# Special tokens of a trained vocabulary, with SOLO's names. Role tokens replace SOLO's later <|im_start|> markup.
SPECIAL_TOKENS = {
    "pad": "<pad>",
    "vision": "<vision>",
    "vision_end": "</vision>",
    "row_separator": "<vrow_sep>",
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
}
# In characters. Longer texts are split, because SentencePiece silently skips texts above its own limit (in bytes), and
# takes quadratic time on long repetitive texts.
_LONGEST_TEXT = 4096


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Trains a SentencePiece model of exactly `config.vocab_size` tokens, special tokens included.

    `SPECIAL_TOKENS` come first, `config.add_tokens` last.

    Text is not normalized, spaces are neither added nor removed, and newlines are kept. Characters without a token fall
    back to bytes. Therefore `decode(encode(text)) == text`, except for U+2581, which SentencePiece uses for the space.
    Training is deterministic.

    Raises:
        ValueError: there is too little text, or too many distinct characters, for a vocabulary of this size; the
            message gives the limit.
    """
    model = io.BytesIO()
    added = [token for token in expand_tokens(config.add_tokens) if token not in SPECIAL_TOKENS.values()]
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=_split(texts),
            model_writer=model,
            vocab_size=config.vocab_size - len(added),
            model_type=config.model_type,
            control_symbols=list(SPECIAL_TOKENS.values()),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=4 * _LONGEST_TEXT,
            num_threads=1,  # The model would depend on the number of threads, through the order of sums.
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), config.vocab_size, len(added))) from None
    return extend_tokenizer(SentencePieceTokenizer(model.getvalue()), added)


def _split(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        pieces = (text[start : start + _LONGEST_TEXT] for start in range(0, len(text), _LONGEST_TEXT))
        # Each piece only once: otherwise a megabyte of one letter would take a quarter of an hour.
        yield from dict.fromkeys(pieces)


def _explain(error: str, vocab_size: int, added: int) -> str:
    if found := re.search(r"a value <= (\d+)", error):
        return f"too little text for a vocabulary of {vocab_size}: it supports at most {int(found[1]) + added}"
    if found := re.search(r"required_chars\. \d+ vs (\d+)", error):
        least = int(found[1]) + added
        return f"a vocabulary of {vocab_size} is too small: bytes, characters and special tokens alone take {least}"
    if "sentences_.empty()" in error:
        return "there is no text to train the tokenizer on"
    return f"SentencePiece could not train the tokenizer: {error}"
