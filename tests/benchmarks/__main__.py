"""Runs the CPU benchmarks one after the other: `python -m tests.benchmarks`. Takes a few minutes on two cores."""

import sys

from tests.benchmarks import attention, data_wait, decoding, experts, planning

for title, run in (
    ("Attention follows the documents", lambda: attention.compare_document_lengths(7)),
    ("Attention against dense", lambda: attention.compare_with_dense(7)),
    ("Visual experts", experts.main),
    ("Planning", lambda: planning.main([])),
    ("Decoding photographs", decoding.main),
    ("Waiting for data", data_wait.main),
):
    print(f"\n{title}")
    sys.argv[1:] = []
    run()
