"""`solo import`: convert a repository of weights to our own layout, or upcycle a text model to a monolith."""

from __future__ import annotations

import argparse

from solo.verbs.overrides import OVERRIDES

HELP = "convert published weights, or upcycle a text model to a monolith"
DESCRIPTION = (
    "Writes a folder of weights for `init_from` and `solo generate`. SOURCE is a Hugging Face repository"
    " (config.json and safetensors) of the model that CONFIG describes, or of a text model of its size, which is"
    " upcycled: visual experts are copies of the text experts, --new-tokens sets the new vocabulary rows, --pre-layers"
    " adds layers in front, the keys of heads' rows and columns are zero, and the patch embedding is random. Only a few"
    " tensors are in memory at a time."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo import`."""
    parser.add_argument("source", metavar="SOURCE", help="folder of a Hugging Face repository")
    parser.add_argument(
        "--as", dest="config", metavar="CONFIG", required=True, help="a YAML file, as in configs/models"
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="output folder; must not exist")
    parser.add_argument(
        "--new-tokens",
        choices=("mean", "normal"),
        default="mean",
        help="rows of new tokens: the mean of the existing ones (default), or random with init_std",
    )
    parser.add_argument(
        "--pre-layers", type=int, default=0, metavar="N", help="add N layers in front of a text model's (NEO: 12 or 6)"
    )
    parser.add_argument(
        "--pre-layers-start",
        choices=("random", "silent"),
        default="random",
        help="random: all weights of layers in front are random, as in NEO (default); silent: their output projections"
        " are zero, so that they change nothing at first",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed for random initialisation; default 0")
    # An option here, unlike in other verbs: argparse rejects positional overrides after options.
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=OVERRIDES
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert a repository of weights to our own layout, or upcycle a text model to a monolith."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from solo.config import load_config
    from solo.interop.importing import import_repository
    from solo.interop.upcycling import PreLayers

    config = load_config(arguments.config, arguments.overrides)
    console = Console()
    bar = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("", total=None)

    def show(written: int, total: int) -> None:
        bar.start()  # only now, so that a source that is refused leaves no empty bar
        bar.update(task, completed=written, total=total)

    try:
        done = import_repository(
            arguments.source,
            config,
            arguments.out,
            new_tokens=arguments.new_tokens,
            pre_layers=PreLayers(arguments.pre_layers, arguments.pre_layers_start == "silent"),
            seed=arguments.seed,
            progress=show,
        )
    finally:
        bar.stop()
    for line in done.summary():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written to {arguments.out}", soft_wrap=True, highlight=False, markup=False)
    return 0
