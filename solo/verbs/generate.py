"""`solo generate`: answer prompts about images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solo.data.record import Image

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
        "--top-p", type=float, default=1.0, metavar="X", help="probability mass of the tokens to sample from; default 1"
    )
    parser.add_argument(
        "--prefill-chunk-size",
        type=int,
        metavar="N",
        help="patches and text tokens of a prompt that are read at once; bounds memory; default: all",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed for sampling; default 0")
    parser.set_defaults(turns=None)


def run(arguments: argparse.Namespace) -> int:
    """Answer prompts about images."""
    questions = user_messages(arguments.turns or [])
    from solo.inference.decoding import Decoding

    decoding = Decoding(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.prefill_chunk_size)
    import solo

    messages: list[dict[str, Any]] = []
    model = solo.load(arguments.run, weights=arguments.weights)
    for question in questions:
        messages.append(question)
        (answer,) = model.generate(
            [messages],
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=arguments.seed,
            prefill_chunk_size=decoding.prefill_chunk_size,
        )
        print(answer, flush=True)
        messages.append({"role": "assistant", "content": answer})
    return 0


def user_messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Returns the user's messages, with their images read, before a model is loaded.

    Args:
        turns: ("image", FILE) and ("prompt", TEXT), in the order of the command line.

    Raises:
        ValueError: there is no prompt, an image has no prompt after it, or an image cannot be read.
    """
    messages: list[dict[str, Any]] = []
    images: list[Any] = []
    last = ""
    for kind, value in turns:
        if kind == "image":
            images.append(_image(value))
            last = value
            continue
        if not value and not images:
            raise ValueError("--prompt is empty, and has no --image before it: there is nothing to answer")
        messages.append({"role": "user", "content": [*images, value] if value else images})
        images = []
    if images:
        raise ValueError(f"--image {last} has no --prompt after it; images come before the prompt that is about them")
    if not messages:
        raise ValueError("generate needs a --prompt, after the --image options that it is about")
    return messages


def _image(path: str) -> Image:
    from solo.data.readers.image_files import load_image

    image = load_image(path)
    try:
        image.decode()
    except OSError as error:
        raise ValueError(f"--image {path}: cannot be decoded: {error}") from None
    return image


class _Turn(argparse.Action):
    """Keeps --image and --prompt in the order of the command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.turns = [*(namespace.turns or []), (self.dest, values)]
