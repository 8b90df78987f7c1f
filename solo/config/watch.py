"""Sections about watching a run: its log lines, Weights & Biases, and profiles."""

from __future__ import annotations

from pydantic import Field

from solo.config.base import Section


class WatchConfig(Section):
    """What a run shows while it trains. `metrics.jsonl` always holds every step."""

    keys_decide = ("nothing",)

    log_every_seconds: float = Field(30.0, gt=0, description="seconds between two log lines without a terminal")
