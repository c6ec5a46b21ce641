"""How a plot looks: a run's colour and marker, the ground, the axes, and the figure as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ldmlab.tasks.comparison.runs import Run
from ldmlab.tasks.comparison.seeds import joint_names, same_but_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers. Its yellow is left out: it cannot be seen on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
# Seven markers to six colours, so that no two of the first 42 runs look alike. Glyphs are for the legend.
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}

INK = "#010203"  # matplotlib knows no currentColor: this stands for it until the SVG is written

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 11.0,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "svg.hashsalt": "ldmlab",  # the same runs give the same page
    "svg.fonttype": "none",  # text stays text: the page's own font, selectable, small
    "text.color": INK,
    "text.parse_math": False,  # a run may be called a$b$
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class RunStyle:
    """How a run looks in every plot of a page, and what it is called in their legends."""

    colour: str
    marker: str
    name: str = ""

    @property
    def glyph(self) -> str:
        """The marker as a character."""
        return MARKERS[self.marker]


def run_styles(runs: Iterable[Run]) -> dict[str, RunStyle]:
    """A colour and a marker for each run, by label; runs that differ in their seeds alone look the same.

    Diffusion models and autoencoders, which share no plot, both begin with the first colour.
    """
    styles: dict[str, RunStyle] = {}
    by_stage: dict[str, list[Run]] = {}
    for run in runs:
        by_stage.setdefault(run.stage, []).append(run)
    for members in by_stage.values():
        groups = same_but_seed(members, lambda run: run)
        for same, style, name in zip(groups, styles_for(len(groups)), joint_names(groups), strict=True):
            styles |= {run.label: replace(style, name=name) for run in same}
    return styles


def styles_for(number: int) -> list[RunStyle]:
    """So many looks, no two of the first 42 alike."""
    markers = list(MARKERS)
    return [RunStyle(COLOURS[i % len(COLOURS)], markers[i % len(markers)]) for i in range(number)]


def log_x(axes: Axes, xs: Sequence[float]) -> None:
    """A logarithmic axis for these values, with some room at both ends."""
    axes.set_xscale("log")
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    log_ticks(axes.xaxis, max(xs) / min(xs))


def log_ticks(axis: Axis, span: float) -> None:
    """Ticks of a logarithmic axis whose ends are so many times apart."""
    from matplotlib.ticker import LogLocator, NullLocator

    # powers of ten alone would leave a short axis with one tick or none
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 200 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def styled() -> AbstractContextManager[None]:
    """The style of all plots holds within the block."""
    import matplotlib  # imported when a plot is wanted: `ldmlab --help` should not wait for it

    return matplotlib.rc_context(_STYLE)


@contextmanager
def drawing() -> Iterator[tuple[Figure, Axes]]:
    """A new figure and its axes, to be drawn within the block."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(4.7, 3.7), layout="constrained")
        yield figure, figure.subplots()


def svg_of(figure: Figure) -> str:
    """The figure as an element for a page, which decides its size and the colour of its ink."""
    buffer = io.StringIO()
    # no metadata: it would carry a date, and the addresses of vocabularies
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    svg = buffer.getvalue()
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)  # the view box stays, and the page decides the size
    return f"{opening}>{rest}".replace(INK, "currentColor")
