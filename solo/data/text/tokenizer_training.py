"""A SentencePiece model of one's own, trained on the sources' text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import sentencepiece

from solo.config import TokenizerConfig
from solo.data.text.sentencepiece_model import SentencePieceTokenizer
from solo.data.text.tokenizer import Tokenizer, expand_tokens, extend_tokenizer

# Special pieces of a trained vocabulary. SOLO's names for what it has; user, assistant and system take the place of
# its later <|im_start|> markup.
PIECES = {
    "pad": "<pad>",
    "vision": "<vision>",
    "vision_end": "</vision>",
    "row_separator": "<vrow_sep>",
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
}
# Characters. SentencePiece leaves texts above its limit (in bytes) out of training without a word, and needs
# quadratic time for long repetitive ones: long texts are cut.
_LONGEST_TEXT = 4096


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train a SentencePiece model of exactly `config.vocab_size` pieces, special ones included.

    `PIECES` come first; `config.add_tokens` come last.

    Text is taken as it is: no normalisation, no spaces added or removed, newlines kept, and characters that got no
    piece fall back to their bytes. So `decode(encode(text)) == text`, but for U+2581, SentencePiece's own sign for
    the space. The same texts give the same model.

    Raises:
        ValueError: the text does not support that many pieces, or that few; the message says how many it would.
    """
    model = io.BytesIO()
    added = [piece for piece in expand_tokens(config.add_tokens) if piece not in PIECES.values()]
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=_cut(texts),
            model_writer=model,
            vocab_size=config.vocab_size - len(added),
            model_type=config.model_type,
            control_symbols=list(PIECES.values()),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=4 * _LONGEST_TEXT,
            num_threads=1,  # Sums over threads depend on their number, and so would the model.
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), config.vocab_size, len(added))) from None
    return extend_tokenizer(SentencePieceTokenizer(model.getvalue()), added)


def _cut(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for start in range(0, len(text), _LONGEST_TEXT):
            yield text[start : start + _LONGEST_TEXT]


def _explain(error: str, vocab_size: int, added: int) -> str:
    if found := re.search(r"a value <= (\d+)", error):
        return f"too little text for a vocabulary of {vocab_size}: it supports at most {int(found[1]) + added}"
    if found := re.search(r"required_chars\. \d+ vs (\d+)", error):
        least = int(found[1]) + added
        return f"a vocabulary of {vocab_size} is too small: bytes, characters and special tokens alone take {least}"
    if "sentences_.empty()" in error:
        return "there is no text to train the tokenizer on"
    return f"SentencePiece could not train the tokenizer: {error}"
