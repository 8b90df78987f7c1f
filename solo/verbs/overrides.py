"""The arguments of verbs that take a config."""

from __future__ import annotations

import argparse

OVERRIDES = "key.path=value, as in model.width=256 or stages.0.steps=100"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds a config and its overrides."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=OVERRIDES)
