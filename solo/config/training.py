"""Sections about the stages of a run."""

from __future__ import annotations
