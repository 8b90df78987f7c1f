"""Turns datasets into batches of numpy arrays, without jax. The modules, in the order of the pipeline:

record      the common format of an example: an id and turns
readers     one file per dataset format; yields records
text        turns to tokens: tokenizers and chat templates
images      image files to patches, and the text tokens around them
vocabulary  the tokenizer of a config, with every special token that its template and images need
filters     selection of the records of a source
store       what `solo prepare` writes: records, distinct images, tokens, an index of their lengths, the tokenizer
planning    assigns documents to the rows of every batch, from the index alone
rows        planned rows to batches: reads documents, assembles rows and prefetches
inspection  the page of `solo inspect`
"""
