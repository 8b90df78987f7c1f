"""All benchmarks, one after the other: `python -m tests.benchmarks`. Some minutes on two cores."""

import sys

from tests.benchmarks import attention, data_wait, experts, planning

for title, run in (
    ("Attention follows the documents", lambda: attention.eight_documents_against_one(7)),
    ("Attention against dense", lambda: attention.blocks_against_dense(7)),
    ("Visual experts", experts.main),
    ("Planning", lambda: planning.main([])),
    ("Waiting for data", data_wait.main),
):
    print(f"\n{title}")
    sys.argv[1:] = []
    run()
