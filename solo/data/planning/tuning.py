"""The tuned constants of row shapes, packing windows and packing, with their measurements.

`fill` is the share of a row's slots that hold something, averaged over the cases of `tests/benchmarks/planning.py`,
and `worst` is the case that fills least. The constants below give fill 0.9959, worst 0.9919, 2.4 us a document, and
1.6 s to choose the shapes of all cases. Each was varied alone; "no effect" means none beyond 0.0003 on these cases.
Repeat a measurement with `python -m tests.benchmarks.planning --set NAME=VALUE`.

Changing a constant changes the planned order, unless it is marked as having no effect on the order.
"""

# ---- Packing; see `solo.data.planning.packing`.

# Part of each region that is filled with the oldest documents, at least. It bounds how long a document waits, and keeps
# a row close to a random sample of the mixture. 0: fill 0.9967, without the bound; 0.15: 0.9964; 0.6: 0.9945.
AGED_PART = 0.3

# Approximate number of documents left to find after the oldest; affects only rows of more documents than this. 24: rows
# of 8,192 digits fill to 0.9992 instead of 0.9995; 96: to 0.9968.
COMPLETED = 48

# Documents among which the rest of a row is found. 192: fill 0.9949, worst 0.9868; 768: 0.9967 for 2.55 us.
CANDIDATES = 384

# Least number of candidates that are tried as having the right ratio of text to patches. It matters to rows of many
# documents: with 0, rows of 8,192 digits fill to 0.9981 instead of 0.9995. 32: the same; 128: no effect.
SUITED = 64

# One in this many candidates is examined to find those. 1 and 8: no effect, in fill or time.
STRIDE = 4

# Random trials of either kind. 16: fill 0.9914, worst 0.9599; 32: 0.9958 for 2.27 us; 128: 0.9965 for 2.80 us.
TRIALS = 64

# Best trials, each of which is given the largest document that still fits. 1: fill 0.9944; 32: 0.9967 for 2.91 us.
FINISHED = 8

# Most candidates that a trial goes through. 48: worst 0.9793; 192: no effect.
MOST_STEPS = 96

# Candidates that a trial goes through, and old documents looked at, per document that fills the room on average.
# 1.2: fill 0.9915, worst 0.9672; 2.0: 0.9960 for 2.88 us.
MARGIN = 1.5

# ---- Packing windows; see `solo.data.planning.packing_windows`.

# Rows that are drawn beyond a window's own, so that the last row has a choice. 4 to 32: no effect with windows of 256
# rows, and 4 carries fewer documents along.
SPARE_ROWS = 16

# Bounds those rows if a row holds many documents; also the size of the sample that counts documents per row. 256 to
# 4,096: no effect.
SPARE_DOCUMENTS = 1024

# Rows at which a lasting surplus of one region is capped; then rows go out unfilled. The cases have no such surplus:
# 16 and 256 have no effect.
MOST_SPARE_ROWS = 64

# Positions of the stream that are looked up at once. No effect on the order. 256: 3.0 us; 1,024: 2.4 us.
LOOKED_UP = 4096

# Planned windows and states that are kept in memory. No effect on the order; a step far from all of them is
# planned again from the nearest state.
WINDOWS_KEPT = 4
SUMS_KEPT = 32  # sums over the rows of a window, which the trainer reads after the loader is far ahead
STATES_KEPT = 128

# ---- Row shapes; see `solo.data.planning.row_shape`.

# How far P + T may be from row_slots, as a fraction of it. 0.04: fill 0.9837, worst 0.9080; 0.25: no effect.
TOLERANCE = 0.12

# Sizes of a row, relative to row_slots, that are tried in this order until one fills well. Only 1: fill 0.9787, worst
# 0.8839; three sizes: 0.9925, worst 0.9603.
SCALES = (1.0, 0.96, 1.04, 0.92, 1.08, 0.88, 1.12)

# P relative to the mixture's ratio, tried after the sizes. (0,): no effect on these cases.
TILTS = (0.0, 0.05, -0.05)

# Fill of the mean document that a shape may give up to be tried. 0: fill 0.9909, worst 0.9479; 0.15: no effect.
GIVEN_UP = 0.05

# Target slots relative to a row's mean targets. 1.0: targets limit the rows, fill 0.9918; 1.3: no effect.
TARGET_MARGIN = 1.15

# Records of each source from which means and the largest image are taken; a larger source is sampled. The sources of
# the cases are smaller.
MEASURED_RECORDS = 1 << 18

# Rows that are packed to see how well a shape fills. 16: worst 0.9705; 256: fill 0.9964 for 3.1 s.
TRIED_ROWS = 64

# Records of each source from which they are drawn. 1,024: no effect; 16,384: other shapes are chosen, worst 0.9705.
TRIED_RECORDS = 4096

# Fill at which a shape is taken without trying others. 0.98: fill 0.9931; 0.999: shapes take 4.3 s, and no case gains.
GOOD_FILL = 0.992

# ---- Chunks; see `solo.data.planning.chunks`.

# Part of the text region that a chunk of text may always take. 0.1 and 0.5: no effect on these cases.
LEAST_TEXT = 0.25

# ---- The steps of a stage whose length is given in tokens; see `solo.data.planning.stage_plan`.

# Packing windows whose mean counts as that of the stage.
COUNTED_WINDOWS = 4
