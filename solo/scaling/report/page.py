"""Chapters as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

import solo
from solo.scaling.laws.table import Table
from solo.scaling.report.chapters import Chapter
from solo.scaling.report.sections import describe_set_aside, describe_table

_MOST_ROWS = 60


def render(table: Table, chapters: Sequence[Chapter], command: str) -> str:
    """Returns the page.

    Args:
        table: the table that was read.
        chapters: all results.
        command: the command that made the page.
    """
    source = files("solo.scaling.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    first = next((chapter.result.runs for chapter in chapters if chapter.result), None)
    return environment.from_string(source).render(
        table=table,
        facts=describe_table(table, first).rows,
        chapters=[
            {"anchor": f"part-{place}", "pictures": list(chapter.pictures(f"part{place}")), "is": chapter}
            for place, chapter in enumerate(chapters, start=1)
        ],
        set_aside=describe_set_aside(table.set_aside, "Set aside"),
        command=command,
        version=solo.__version__,
        most_rows=_MOST_ROWS,
    )
