"""A model of lmms-eval (0.7): `lmms-eval --model solo --model_args pretrained=runs/x --tasks pope`.

lmms-eval finds it through the entry point `lmms_eval.models` of this package. It is a chat model: a task provides
messages that contain the images in order, and solo's own chat template makes the prompt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from tqdm import tqdm

from solo.harnesses.answering import Answering, Settings
from solo.training.evaluators import TRAINED

_SEPARATOR = "\n\n"


class Solo(lmms):
    """A run or a repository, answered by JAX on all devices of this process.

    Args:
        pretrained: a run, one of its checkpoints (`runs/x@1000`), or a repository.
        weights: for a run, `trained` or the name of an average.
        batch_size: number of requests that are answered together.
        max_new_tokens: default for tasks that do not set it.
        system_prompt: a system prompt, or a file that contains it.
        seed: seed for tasks that sample.
        context: the longest sequence, in patches and text tokens; by default as in training, or as the repository says.
            If a prompt does not fit, its images are made smaller.
        max_batch_size: passed by lmms-eval; must be None, because there is no search for the largest batch size.
        device: passed by lmms-eval and ignored; JAX chooses the devices (`JAX_PLATFORMS`).

    Raises:
        ValueError: an unknown argument, several processes, or weights that cannot be opened.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        weights: str = TRAINED,
        batch_size: int | str = 1,
        max_new_tokens: int = 1024,
        system_prompt: str | None = None,
        seed: int = 0,
        context: int | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise ValueError(f"--model_args: solo does not know {', '.join(sorted(unknown))}")
        if not pretrained:
            raise ValueError("--model_args: pretrained=PATH is missing; PATH is a run or a repository")
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or max_batch_size is not None:
            raise ValueError("--batch_size must be a number from 1; solo does not search for the largest")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("start one process: JAX uses all of its devices by itself")
        self.answering = Answering(str(pretrained), weights, int(batch_size), seed, context)
        self.max_new_tokens = int(max_new_tokens)
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else ""

    @property
    def batch_size(self) -> int:
        """Number of requests that are answered together."""
        return self.answering.batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers requests with the arguments (context, doc_to_messages, settings, document, task, split), in order."""
        answers: list[str] = []
        with tqdm(total=len(requests), desc="solo", disable=self.rank != 0) as bar:
            for start in range(0, len(requests), self.answering.chunk):
                given = [request.args for request in requests[start : start + self.answering.chunk]]
                written = self.answering.answer([self._request(*arguments) for arguments in given], first=start)
                for (context, _, settings, *_), text in zip(given, written, strict=True):
                    self.cache_hook.add_partial("generate_until", (context, settings), text)
                answers += written
                bar.update(len(given))
        return answers

    def _request(
        self, context: str, doc_to_messages: Any, settings: dict[str, Any], document: int, task: str, split: str
    ) -> tuple[list[dict[str, Any]], Settings]:
        # lmms-eval's default stop string is its separator of examples, which would cut an answer after its first
        # paragraph. Its own chat models ignore it, too.
        given = {name: value for name, value in settings.items() if (name, value) != ("until", [_SEPARATOR])}
        try:
            found = Settings.of(given, self.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"task {task}: {error}") from None
        messages = doc_to_messages(self.task_dict[task][split][document])
        return self._apply_system_prompt(messages, self.system_prompt), found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not available: lmms-eval asks chat models for answers only."""
        raise NotImplementedError(
            "solo answers in lmms-eval, and gives no likelihoods: for a text task that compares likelihoods, run"
            " lm-evaluation-harness on an export (docs/reach.md)"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not available."""
        raise NotImplementedError("solo does not run lmms-eval's tasks of several rounds")
