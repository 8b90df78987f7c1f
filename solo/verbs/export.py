"""`solo export`: write a checkpoint as a Hugging Face repository, and verify it."""

from __future__ import annotations

import argparse

HELP = "write a checkpoint as a Hugging Face repository"
DESCRIPTION = (
    "Writes weights, config, tokenizer, processor, chat template and a model card to a folder in Hugging"
    " Face form. Layout native contains its own PyTorch code for transformers; the other layouts are those of published"
    " models. A text layout exports the text path of a monolith. The result is read back, and its logits and"
    " answers are compared with the checkpoint's if PyTorch and transformers are installed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo export`."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a run's folder, a checkpoint (RUN@STEP, RUN@best), or a folder of weights",
    )
    parser.add_argument("--to", metavar="FOLDER", required=True, help="output folder; must not exist")
    parser.add_argument(
        "--weights", metavar="NAME", default="trained", help="an average of the weights, such as ema; default: trained"
    )
    parser.add_argument(
        "--average",
        metavar="N or STEP,STEP",
        type=_average,
        help="export the mean of the newest N checkpoints, or of the checkpoints of several steps",
    )
    parser.add_argument("--layout", metavar="NAME", default="native", help="default native; an unknown name lists all")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default float32"
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare the result with the checkpoint"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write a checkpoint as a Hugging Face repository, and verify it."""
    from rich.console import Console

    from solo.interop.export import export as export_checkpoint

    console = Console()
    with console.status("opening the checkpoint") as status:
        done = export_checkpoint(
            arguments.checkpoint,
            arguments.to,
            arguments.layout,
            dtype=arguments.dtype,
            weights=arguments.weights,
            average=arguments.average,
            verified=arguments.verify,
            report=status.update,
        )
    for line in done.summary():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written to {arguments.to}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _average(text: str) -> int | tuple[int, ...]:
    """Reads --average: a number of checkpoints, or steps."""
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"expected a number of checkpoints, or steps such as 900,1000; got {text!r}")
    steps = tuple(map(int, numbers))
    return steps[0] if len(steps) == 1 else steps
