"""Text to tokens: tokenizers (SentencePiece models and `tokenizer.json` files) and chat templates."""

from solo.data.text.tokenizer import SpecialTokens, Tokenizer, expand_tokens, extend_tokenizer
from solo.data.text.tokenizer_files import open_tokenizer
from solo.data.text.tokenizer_training import SPECIAL_TOKENS, train_tokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "SpecialTokens",
    "Tokenizer",
    "expand_tokens",
    "extend_tokenizer",
    "open_tokenizer",
    "train_tokenizer",
]
