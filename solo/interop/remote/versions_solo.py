"""The version of transformers that this repository's code needs. Imported before anything else of transformers."""

import re

import transformers

OLDEST = "5.15.1"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


if _numbers(installed := transformers.__version__) < _numbers(OLDEST):
    raise ImportError(
        f"the code of this repository needs transformers {OLDEST} or newer, and {installed} is installed:"
        " pip install --upgrade transformers"
    )

__all__ = ["OLDEST"]
