"""What `solo prepare` writes: shards of records, an index of their lengths, the tokenizer."""
