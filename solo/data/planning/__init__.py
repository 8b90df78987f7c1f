"""Plans a stage: assigns documents to the rows of every batch.

mixture        the order in which documents are drawn from the sources, with constant weights
mixture_weights  the weights at every step: constant, scheduled, changed or learned
draws          the order of the draws while weights change, and caps on epochs
passes         how often each source is read
permutation    seeded shuffles that store no tables
row_shape      numbers of patch, text and target slots of a row
chunks         splits documents that are too long for a row
packing        packs documents into rows that fill both regions
packing_windows  a few hundred rows that are packed together, one after the other
stage_plan     combines these: the rows of any step
tuning         every tuned constant, with its measurements
"""
