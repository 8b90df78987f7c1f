"""Prints sections on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solo.scaling.report.sections import Section

_MOST_ROWS = 12
_WIDEST = 1000


def print_sections(sections: Sequence[Section], console: Console) -> None:
    """Prints sections one after the other; empty ones are skipped."""
    for section in sections:
        if section.title and (section.answers or section.warnings or section.rows or section.notes):
            console.print(f"[bold]{section.title}[/bold]")
        for line in (*section.answers, *section.warnings, section.lead):
            if line:
                console.print(line, markup=False)
        if section.rows and not section.brief:
            print_whole(_table(section), console)
            if (more := len(section.rows) - _MOST_ROWS) > 0:
                console.print(f"... and {more} more, in the JSON and the report")
        for note in section.notes:
            console.print(note, markup=False)


def print_whole(table: Table, console: Console) -> None:
    """Prints a table without truncating cells, even if the terminal is narrow or the output is not a terminal."""
    width = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    console.width = max(width, console.width)
    console.print(table)


def _table(section: Section) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, title in enumerate(section.columns):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for row in section.rows[:_MOST_ROWS]:
        table.add_row(*map(escape, row))
    return table
