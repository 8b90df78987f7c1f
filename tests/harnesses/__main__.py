"""Runs harnesses and engines for real, offline, each in an environment of its own; compares their results with ours.

    python -m tests.harnesses FOLDER lmms_eval|lm_eval|vllm

FOLDER receives the environments and all files. An environment that exists is used as it is. docs/reach.md has results.
"""

import sys
from pathlib import Path

from tests.harnesses import real_lm_eval, real_lmms_eval, real_vllm

HARNESSES = {"lmms_eval": real_lmms_eval.run, "lm_eval": real_lm_eval.run, "vllm": real_vllm.run}


def main(arguments: list[str]) -> None:
    if len(arguments) != 2 or arguments[1] not in HARNESSES:
        raise SystemExit(f"usage: python -m tests.harnesses FOLDER {'|'.join(HARNESSES)}")
    HARNESSES[arguments[1]](Path(arguments[0]).absolute())


if __name__ == "__main__":
    main(sys.argv[1:])
