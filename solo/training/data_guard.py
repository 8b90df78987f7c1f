"""Stops a run if too much of its data cannot be read.

The plan determines how many documents and targets a batch should have. They are compared with the batch itself. Both
counts are over all hosts, so that all hosts make the same decision.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from pathlib import Path

from solo.data.planning.stage_plan import PlanStatistics
from solo.files import read_json_lines
from solo.model.flops import BatchStats

# The share of unreadable documents is taken over this many of the latest ones, or over one batch if it has more.
SAMPLE = 1000
_REASONS_SHOWN = 5


class DataError(ValueError):
    """The data of a run cannot be used for training; the message says what is missing, and where."""


class DataGuard:
    """Watches the documents of the latest batches.

    Args:
        most: share of the documents that may be unreadable, `data.max_unreadable`.
        quarantine: file with the reasons, `quarantine.jsonl` of the run; None if there is none.
    """

    def __init__(self, most: float, quarantine: Path | None = None) -> None:
        self._most, self._quarantine = most, quarantine
        self._recent: deque[tuple[int, int]] = deque()

    def check(self, where: str, planned: PlanStatistics, found: BatchStats) -> None:
        """Compares a batch with its plan.

        Args:
            where: name of the batch, with which messages begin.
            planned: plan of the batch.
            found: documents and targets of the batch.

        Raises:
            DataError: the batch has no target, or too many of the latest documents could not be read.
        """
        documents = sum(planned.documents)
        self._recent.append((documents, max(documents - found.documents, 0)))
        while sum(count for count, _ in self._recent) - self._recent[0][0] >= SAMPLE:
            self._recent.popleft()
        seen, missing = (sum(column) for column in zip(*self._recent, strict=True))
        if not found.targets:
            raise DataError(f"{where} has no target to learn from: {self._why(planned, found)}{self._summary()}")
        # Until the run has read SAMPLE documents, the share is still taken over SAMPLE of them.
        if missing > self._most * max(seen, SAMPLE):
            raise DataError(
                f"{where}: {missing:,} of the last {seen:,} documents could not be read, more than data.max_unreadable"
                f" {self._most:g} allows{self._summary()}"
            )

    def _why(self, planned: PlanStatistics, found: BatchStats) -> str:
        documents = sum(planned.documents)
        if not documents:
            return "no documents are left to draw"
        if not planned.useful[2]:
            return (
                f"its {documents:,} documents hold text that is read but not learned, such as users' turns; remove"
                " these from the mixture, or raise batch_rows"
            )
        return f"{documents - found.documents:,} of its {documents:,} documents could not be read"

    def _summary(self) -> str:
        """Returns lines with the most frequent reasons, by source."""
        lines = read_json_lines(self._quarantine)[0] if self._quarantine else []
        # Reasons that differ only in numbers or names of parts are counted as one.
        kinds = [
            (line["source"], re.sub(r"[0-9a-f]{16}|\d+", "#", str(line.get("reason"))))
            for line in lines
            if "source" in line
        ]
        if not kinds:
            return ""
        first = {
            kind: line for kind, line in reversed(list(zip(kinds, (x for x in lines if "source" in x), strict=True)))
        }
        counts = Counter(kinds)
        shown = [
            f"\n  {kind[0]}: {count:,} times, first document {first[kind].get('id')}: {first[kind].get('reason')}"
            for kind, count in counts.most_common(_REASONS_SHOWN)
        ]
        more = f"\n  and {len(counts) - len(shown):,} other reasons" if len(counts) > len(shown) else ""
        check = "If files are missing or damaged, this names them: solo prepare CONFIG --check"
        return f"; see {self._quarantine}:{''.join(shown)}{more}\n{check}"
