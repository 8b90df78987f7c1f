"""Matplotlib figures as inline SVG that uses the page's colours: light, dark or in print."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from markupsafe import Markup, escape
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

# Figures are drawn in these colours, which are then replaced by the style sheet's variables.
INK, QUIET, LINE, ACCENT, WRONG, GROUND = "#1f1e1b", "#6b6860", "#e3e0d8", "#35548f", "#ad3223", "#faf9f6"
_PAGE = {INK: "--ink", QUIET: "--quiet", LINE: "--line", ACCENT: "--accent", WRONG: "--wrong", GROUND: "--page"}

_STYLE: Any = {
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "legend.facecolor": GROUND,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function that draws: Matplotlib reads the style whenever something is added to a figure."""

    @wraps(draw)
    def within(*arguments: P.args, **named: P.kwargs) -> T:
        with rc_context(_STYLE):
            return draw(*arguments, **named)

    return within


_figures: ContextVar[Callable[[str, Any], None] | None] = ContextVar("figures", default=None)


@contextmanager
def exported(save: Callable[[str, bytes], None], creator: str) -> Iterator[None]:
    """Also saves all figures that are finished inside, as SVG and PDF in the colours of a light page.

    Args:
        save: called with the name of a file and its content.
        creator: written into the metadata of the files.
    """

    def both(name: str, figure: Any) -> None:
        for kind in ("svg", "pdf"):
            buffer = io.BytesIO()
            with rc_context({"svg.hashsalt": name, "pdf.fonttype": 42}):
                dates = {"Date": None} if kind == "svg" else {"CreationDate": None}
                figure.savefig(buffer, format=kind, dpi=300, metadata={"Creator": creator, **dates})
            save(f"{name}.{kind}", buffer.getvalue())

    token = _figures.set(both)
    try:
        yield
    finally:
        _figures.reset(token)


class Drawing:
    """A figure with some axes; `svg` finishes it."""

    def __init__(self, name: str, rows: int = 1, columns: int = 1, height: float = 3.4, **options: Any):
        """Creates a figure. `name` is unique on the page; `height` is in inches at a width of 8.8."""
        self.name = name
        self.figure = Figure(figsize=(8.8, height), layout="constrained")
        self.axes: Any = self.figure.subplots(rows, columns, squeeze=False, **options)

    @property
    def first(self) -> Axes:
        """The axes of a figure with a single plot."""
        return self.axes[0, 0]

    def svg(self, label: str) -> Markup:
        """Returns the figure as an SVG element with a label for screen readers."""
        if save := _figures.get():
            save(f"{self.name}-{re.sub('[^a-z0-9]+', '-', label.lower()).strip('-')}", self.figure)
        buffer = io.StringIO()
        with rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        for color, variable in _PAGE.items():
            text = text.replace(color, f"var({variable})")
        # The ids of several figures on a page must differ.
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{self.name}-", text)
        head = f'<svg class="figure" role="img" aria-label="{escape(label)}"'
        text = re.sub(r'<svg xmlns:xlink="[^"]*" width="[^"]*" height="[^"]*"', head, text, count=1)
        return Markup(text)


def shades(count: int) -> Sequence[Any]:
    """Returns `count` ordered colours that are distinguishable on light and on dark pages."""
    scale = colormaps["viridis"]
    return [scale(0.22 + 0.56 * place / max(count - 1, 1)) for place in range(count)]
