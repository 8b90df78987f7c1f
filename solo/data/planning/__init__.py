"""Plans a stage: which documents share which row of which batch.

mixture        the order in which documents are drawn from the sources
permutation    seeded shuffles without tables
row_shape      how many patch, text and target slots a row has
chunks         documents that are too long for a row, split
packing        documents into rows that fill both regions
packing_windows  a few hundred rows that are packed together, one after the other
stage_plan     all of it: the rows of any step
tuning         every constant that was tuned, with what was measured
"""
