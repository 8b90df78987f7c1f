"""Which records of a source are taken: filters, held-out shares, empty answers, duplicates."""

from solo.data.filters.duplicates import choose_duplicates
from solo.data.filters.selection import Filtered, Selection

__all__ = ["Filtered", "Selection", "choose_duplicates"]
