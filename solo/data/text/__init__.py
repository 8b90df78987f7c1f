"""Tokenizers: SentencePiece models and `tokenizer.json` files behind one interface."""

from solo.data.text.tokenizer import SpecialTokens, Tokenizer, expand_tokens, extend_tokenizer
from solo.data.text.tokenizer_files import open_tokenizer
from solo.data.text.tokenizer_training import PIECES, train_tokenizer

__all__ = [
    "PIECES",
    "SpecialTokens",
    "Tokenizer",
    "expand_tokens",
    "extend_tokenizer",
    "open_tokenizer",
    "train_tokenizer",
]
