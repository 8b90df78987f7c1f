"""`solo inspect`: write a page that shows what a config's run will read, or what a source holds."""

from __future__ import annotations

import argparse

from solo.outputs import add_force, output
from solo.verbs.overrides import OVERRIDES

HELP = "show the data of a run, or the content of a file, as one HTML page"
DESCRIPTION = (
    "Writes a page with samples of every source as the model sees them, a packed row, histograms, the shares and"
    " repeats of the mixture, and what was left out and why. A config's data must be prepared. A file, folder or"
    " glob that is not a config is read as a source; data.sources.source.options.NAME=VALUE sets an option of its"
    " reader."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo inspect`."""
    parser.add_argument("config", metavar="CONFIG|SOURCE", help="a YAML file, or a source such as chats.jsonl")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=OVERRIDES)
    parser.add_argument("--out", metavar="FILE", default="inspect.html", help="output file; default inspect.html")
    parser.add_argument(
        "--samples", type=int, default=3, metavar="N", help="number of documents to show for every source; default 3"
    )
    parser.add_argument("--step", type=int, default=0, metavar="N", help="step whose row is shown; default 0")
    add_force(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write a page that shows what a config's run will read, or what a source holds."""
    from solo.config import load_config
    from solo.data.inspection.page import render
    from solo.data.inspection.unprepared import render_source
    from solo.data.store.prepare import open_prepared

    out = output(arguments, "--out")
    assert out is not None  # it has a default
    if arguments.config.endswith((".yaml", ".yml")):
        config = load_config(arguments.config, arguments.overrides)
        page = render(config, open_prepared(config), arguments.samples, arguments.step)
    else:
        page = render_source(arguments.config, arguments.overrides, arguments.samples)
    out.write_text(page)
    print(f"wrote {out.path}")
    return 0
