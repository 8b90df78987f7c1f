"""Tables of a study for a paper, as LaTeX with the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from solo.scaling.report.chapters import Chapter
from solo.scaling.report.sections import Section

# First headings of the tables that a paper shows.
_SHOWN = ("Coefficient", "Shared by the groups", "FLOPs")
_GREEK = ("alpha", "beta", "gamma")
_SPECIAL = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


def tables(chapters: Sequence[Chapter]) -> str:
    """Returns one table for each chapter's coefficients, tests and predictions."""
    parts = [
        _table(chapter, section)
        for chapter in chapters
        for section in chapter.sections
        if section.rows and section.columns[0] in _SHOWN
    ]
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def _table(chapter: Chapter, section: Section) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(section.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(_text, section.columns)) + r" \\", r"\midrule"]
    for row in section.rows:
        name = _symbol(row[0]) if section.columns[0] == "Coefficient" else _text(row[0])
        missing = len(section.columns) - len(row)
        cells = [name, *map(_text, row[1:])]
        if missing:
            cells[-1] = rf"\multicolumn{{{1 + missing}}}{{l}}{{{cells[-1]}}}"
        lines.append(" & ".join(cells) + r" \\")
    title = " · ".join(filter(None, (chapter.title, section.title)))
    caption = f"{_text(title)}: {_formula(chapter.formula)}" if chapter.formula else _text(title)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""])


def _text(text: str) -> str:
    """Escapes text; numbers such as 1.2e22 become powers of ten."""
    escaped = "".join(_SPECIAL.get(character, character) for character in text)
    escaped = re.sub(r"(\d(?:\.\d+)?)e\+?(-?\d+)", r"$\1 \\times 10^{\2}$", escaped)
    return escaped.replace(" to ", "--").replace("·", r"$\cdot$")


def _symbol(text: str) -> str:
    """Returns a coefficient in mathematics: `E  (floor, nats)` is E, `alpha[one]` alpha with an index."""
    name, _, rest = text.partition("  ")
    base, _, group = name.partition("[")
    base = f"\\{base}" if base in _GREEK else base
    index = rf"_\text{{{_text(group[:-1])}}}" if group else ""
    return f"${base}{index}$" + (f" {_formula(rest)}" if rest else "")


def _formula(text: str) -> str:
    """Returns a line with a formula: Greek letters and exponents in mathematics."""
    formula, colon, rest = text.partition(": ")
    greek = re.sub(r"\b(alpha|beta|gamma)\b", r"\\\1", formula)
    greek = re.sub(r"\^(\\?\w+)", r"^{\1}", greek)
    words = re.sub(r"(?<![\\\w])([A-Za-z]{3,}(?: [A-Za-z]{2,})*)", r"\\text{\1}", greek)
    return f"${words.replace('~', chr(92) + 'sim ')}$" + (f": {_text(rest)}" if colon else "")
