"""What `solo prepare` writes, and how it is read: shards of records, an index of their lengths, the tokenizer."""
