"""`solo prepare`: prepare the sources of a config, or check what is prepared."""

from __future__ import annotations

import argparse

from solo.verbs.overrides import add_config

HELP = "prepare a config's sources as shards and indexes"
DESCRIPTION = (
    "Reads every source of the config, trains or extends the tokenizer, and writes ArrayRecord shards with an"
    " index of counts. Parts whose settings and inputs are unchanged are kept, even after a kill. `solo train` does"
    " this by itself unless it runs in several processes."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `solo prepare`."""
    add_config(parser)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--shard",
        metavar="I/N",
        help="only prepare the share of host I of N, counted from 0; the last host joins the parts",
    )
    ways.add_argument("--beam", action="store_true", help="prepare the parts with Apache Beam (extra: beam)")
    ways.add_argument("--check", action="store_true", help="only verify the checksums of all files")
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="number of processes; default: one for each core"
    )
    parser.add_argument(
        "--runner", default="DirectRunner", metavar="NAME", help="runner of Apache Beam; default: DirectRunner"
    )
    parser.add_argument(
        "--beam-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the Beam pipeline, such as project=P; repeatable",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare the sources of a config, or check what is prepared."""
    from rich.console import Console

    from solo.config import load_config
    from solo.data.store.prepare import open_prepared
    from solo.data.store.prepare import prepare as prepare_data
    from solo.data.store.progress import watcher

    console = Console()
    config = load_config(arguments.config, arguments.overrides)
    shows = watcher(console)
    if arguments.check:
        prepared = open_prepared(config)
        for name, source in prepared.sources.items():
            source.check(contents=True)
            shows.say(f"{name}: {len(source):,} records, all checksums are right")
        return 0
    if arguments.shard is not None:
        from solo.data.store.shared import Shard, prepare_shard

        made = prepare_shard(config, Shard.parse(arguments.shard), arguments.workers, shows)
        if made is None:
            return 0
        prepared = made
    elif arguments.beam or arguments.beam_option:
        from solo.data.store.shared import prepare_with_beam

        runner = [f"--runner={arguments.runner}"]
        prepared = prepare_with_beam(config, runner + [f"--{each}" for each in arguments.beam_option], shows)
    else:
        prepared = prepare_data(config, workers=arguments.workers, watcher=shows)
    for name, source in prepared.sources.items():
        patches, text, supervised = source.index.counts(config.image).sum(axis=0)
        shows.say(
            f"{name}: {len(source):,} records, {patches:,} visual tokens, {text:,} text tokens, {supervised:,} learned"
        )
    shows.say(f"vocabulary {prepared.tokenizer.vocab_size:,}; quarantined {prepared.quarantined:,}")
    shows.say(f"prepared data is in {config.data.folder}")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value
