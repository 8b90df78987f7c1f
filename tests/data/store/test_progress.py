"""What a preparation shows: a bar on a terminal, lines elsewhere."""

import io

import pytest
from rich.console import Console

from solo.data.store import progress
from solo.data.store.progress import Amount, Bar, Lines, watcher


class Clock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=140)


def test_a_log_has_a_line_every_ten_seconds(clock: Clock) -> None:
    shown = console(terminal=False)
    lines = watcher(shown)
    assert isinstance(lines, Lines)
    lines.begin("preparing", 40)
    for _ in range(50):  # a second each
        clock.now += 1
        lines.advance(Amount(100, 200, 1))
        lines.advance(Amount(), 1)
    lines.end()
    said = shown.file.getvalue().splitlines()
    assert len(said) == 5
    assert said[0] == ("preparing: 9 of 40 parts, 1,000 records, 2,000 images, 10 quarantined, 100 records/s")


def test_a_terminal_has_a_bar_that_disappears(clock: Clock) -> None:
    shown = console(terminal=True)
    bar = watcher(shown)
    assert isinstance(bar, Bar)
    bar.begin("preparing", 4)
    clock.now += 2
    bar.advance(Amount(1000, 0, 3), 1)
    bar.say("a line that stays")
    bar.end()
    text = shown.file.getvalue()
    assert "1/4" in text
    assert "1,000 records, 0 images, 3 quarantined, 500 records/s" in text
    assert "a line that stays" in text
