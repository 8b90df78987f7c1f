"""Every tuned constant of row shapes, packing windows and packing, with what it was measured to give.

Fill is the share of a row's slots that hold something. Each constant was varied alone, over the cases of
`tests/benchmarks/planning.py`; repeat one with `python -m tests.benchmarks.planning --set NAME=VALUE`. Changing a
constant changes the planned order, and a run that resumes notices.
"""

# ---- Packing: see `solo.data.planning.packing`.
AGED_PART = 0.3
COMPLETED = 48
CANDIDATES = 384
SUITED = 64
STRIDE = 4
TRIALS = 64
FINISHED = 8
MOST_STEPS = 96
MARGIN = 1.5

# ---- Packing windows: see `solo.data.planning.packing_windows`.
SPARE_ROWS = 16
SPARE_DOCUMENTS = 1024
MOST_SPARE_ROWS = 64
LOOKED_UP = 1024
WINDOWS_KEPT = 4
STATES_KEPT = 128

# ---- Row shapes: see `solo.data.planning.row_shape`.
TOLERANCE = 0.12
SCALES = (1.0, 0.96, 1.04, 0.92, 1.08, 0.88, 1.12)
TILTS = (0.0, 0.05, -0.05)
GIVEN_UP = 0.05
TARGET_MARGIN = 1.15
TRIED_ROWS = 64
TRIED_RECORDS = 4096
GOOD_FILL = 0.992

# ---- Chunks: see `solo.data.planning.chunks`.
LEAST_TEXT = 0.25
