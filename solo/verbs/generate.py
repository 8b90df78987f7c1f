"""`solo generate`: answer prompts about images."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "answer a prompt about images"
DESCRIPTION = (
    "Each --prompt is a user turn with the --image options before it; the answer is printed and the next --prompt"
    " continues the conversation."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo generate`."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint: RUN@STEP, RUN@best, or its folder")
    parser.add_argument(
        "--weights", metavar="NAME", default="trained", help="an average of the weights, such as ema; default: trained"
    )
    parser.add_argument("--image", action=_Turn, metavar="FILE", help="an image; repeatable")
    parser.add_argument("--prompt", action=_Turn, metavar="TEXT", help="a user turn; repeatable")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default 0: greedy")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="probability mass sampled from; default 1"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling; default 0")
    parser.set_defaults(turns=None)


def run(arguments: argparse.Namespace) -> int:
    """Answer prompts about images."""
    if not arguments.turns:
        raise ValueError("generate needs a --prompt, after the --image options that it is about")
    import solo

    messages: list[dict[str, Any]] = []
    images: list[Any] = []
    model = solo.load(arguments.run, weights=arguments.weights)
    for kind, value in arguments.turns:
        if kind == "image":
            images.append({"type": "image", "image": value})
            continue
        messages.append({"role": "user", "content": [*images, value] if value else images})
        images = []
        (answer,) = model.generate(
            [messages],
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
        print(answer)
        messages.append({"role": "assistant", "content": answer})
    if images:
        raise ValueError("the last --image has no --prompt after it")
    return 0


class _Turn(argparse.Action):
    """Keeps --image and --prompt in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.turns = [*(namespace.turns or []), (self.dest, values)]
