"""Decides which records of a source are used: filters, held-out share, empty answers, duplicates."""

from solo.data.filters.duplicates import choose_duplicates
from solo.data.filters.selection import Filtered, Selection

__all__ = ["Filtered", "Selection", "choose_duplicates"]
