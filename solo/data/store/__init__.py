"""Prepared data on disk: shards of records, an index of their lengths, and the tokenizer."""
