"""From datasets to batches. Numpy only: nothing here imports jax. Each room imports only those above it.

record      the normal form of an example: an id and turns
readers     one file per dataset format; yields records
text        turns to tokens: tokenizers and chat templates
images      image files to patches, and the text tokens around them
vocabulary  the tokenizer of a config, with every special token that its template and images need
store       what `solo prepare` writes: shards of records, an index of their lengths, the tokenizer
planning    from the index alone: which documents share which row of which batch
rows        planned rows to batches: documents are read, laid out and loaded ahead
"""
