"""A model of VLMEvalKit, which has no plug-ins: its `run.py` is started through this module.

python -m solo.harnesses.vlmevalkit VLMEvalKit/run.py --config config.json --work-dir results

{"model": {"my-run": {"class": "Solo", "pretrained": "runs/x"}},
 "data": {"MMStar": {"class": "ImageMCQDataset", "dataset": "MMStar"}}}
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vlmeval.vlm
from vlmeval.vlm.base import BaseModel

from solo.harnesses.answering import Answering, Settings
from solo.training.evaluators import TRAINED


class Solo(BaseModel):
    """A run or a repository, answered by JAX on all devices of this process.

    Args:
        pretrained: a run, one of its checkpoints (`runs/x@1000`), or a repository.
        weights: for a run, `trained` or the name of an average.
        context: the longest sequence, in patches and text tokens; by default as in training, or as the repository says.
            If a prompt does not fit, its images are made smaller.
        settings: generation settings such as `max_new_tokens` (by default 1,024) and `temperature` (by default 0).

    Raises:
        ValueError: an unknown setting, or weights that cannot be opened.
    """

    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(self, pretrained: str, weights: str = TRAINED, context: int | None = None, **settings: Any):
        super().__init__()
        self.settings = Settings.of(settings, max_new_tokens=1024)
        self.answering = Answering(pretrained, weights, context=context)

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """Answers one message of texts and images, [{"type": "image" or "text", "value": path or text}]."""
        return self.chat_inner([{"role": "user", "content": message}])

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """Answers a conversation, [{"role": "user" or "assistant", "content": as in `generate_inner`}]."""
        turns = [{"role": turn["role"], "content": [_part(**part) for part in turn["content"]]} for turn in message]
        return self.answering.answer([(turns, self.settings)])[0]


def _part(type: str, value: str, **_: Any) -> dict[str, str]:
    return {"type": type, type: value}


def main() -> None:
    """Runs VLMEvalKit's `run.py`, whose path and arguments are those of this process, with the class `Solo`."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit("usage: python -m solo.harnesses.vlmevalkit VLMEvalKit/run.py [arguments of run.py]")
    vlmeval.vlm.Solo = Solo
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
