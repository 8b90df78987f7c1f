"""Tokenizers: SentencePiece models and `tokenizer.json` files behind one interface."""

from solo.data.tokenizer.base import SpecialTokens, Tokenizer, expand_pieces, extend_tokenizer
from solo.data.tokenizer.files import open_tokenizer
from solo.data.tokenizer.training import PIECES, train_tokenizer

__all__ = [
    "PIECES",
    "SpecialTokens",
    "Tokenizer",
    "expand_pieces",
    "extend_tokenizer",
    "open_tokenizer",
    "train_tokenizer",
]
