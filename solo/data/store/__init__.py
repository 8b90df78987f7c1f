"""Prepared data on disk: parts with records, images and tokens, an index of their lengths, and the tokenizer."""
