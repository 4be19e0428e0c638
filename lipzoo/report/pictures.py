"""Pictures for pages and documents, of one hand: few lines, named where they end, text in the colour of the page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#7f7f80"
"""Stands for the colour of the text around, which a page knows."""
COLORS = ("#3d7ec9", "#d9802e", "#3f9e5a", "#c9515f", "#8a6bb8", "#a07a4b", "#c96aa8", "#5c9da6")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lipzoo",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
SIZE = (4.6, 3.2)
"""Inches, of 72 points: readable on a phone."""
GAP = 0.055
"""Between labels, at least, as a fraction of the height."""


class Line(NamedTuple):
    """A line of a picture, and how it is told from others."""

    label: str
    x: Sequence[float] | Float[np.ndarray, " n"]
    y: Sequence[float] | Float[np.ndarray, " n"]
    color: int = 0
    style: str = "-"
    marker: str = ""


def lines(
    drawn: Sequence[Line],
    title: str,
    x: str,
    y: str,
    *,
    log_y: bool = False,
    limits: tuple[float, float] | None = None,
    right: float | None = None,
) -> Figure:
    """Lines, each named at its end in its colour; axes are named with their units."""
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for line in drawn:
            axes.plot(line.x, line.y, line.style, color=_color(line), marker=line.marker, markersize=4, linewidth=1.6)
        _frame(axes, title, x, y)
        if log_y:
            axes.set_yscale("log")
        if limits:
            axes.set_ylim(*limits)
        if right is not None:
            axes.set_xlim(0, right)
        _name_ends(axes, drawn)
    return figure


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)


def _color(line: Line) -> str:
    return COLORS[line.color % len(COLORS)]


def _name_ends(axes: Axes, drawn: Sequence[Line]) -> None:
    """Names beside the right edge, each as near to the end of its line as others leave room."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    scale = axes.get_yaxis().get_transform()
    bottom, top = (float(scale.transform(np.array([v]))[0]) for v in (low, high))

    def height(line: Line) -> float:
        inside = [y for x, y in zip(line.x, line.y, strict=True) if x <= right and np.isfinite(y)]
        last = float(scale.transform(np.array([inside[-1] if inside else low]))[0])
        return min(max((last - bottom) / (top - bottom), 0.0), 1.0)

    named = [line for line in drawn if line.label and len(line.x)]
    for line, place in zip(named, spread([height(line) for line in named], GAP), strict=True):
        axes.annotate(
            line.label,
            (1.02, place),
            xycoords="axes fraction",
            color=_color(line),
            va="center",
            fontsize=8,
            annotation_clip=False,
            parse_math=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved apart until any two are a gap from each other, in their order, and none is below 0."""
    order = np.argsort(np.asarray(heights, float), kind="stable")
    places = np.asarray(heights, float)[order]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    over = max(0.0, places[-1] - 1 - gap) if len(places) else 0.0
    places = places - over
    for index in range(len(places) - 2, -1, -1):
        places[index] = min(places[index], places[index + 1] - gap)
    result = np.empty(len(places))
    result[order] = places
    return result.tolist()


def ranges(rows: Mapping[str, tuple[float, float]], title: str, x: str) -> Figure:
    """For each name a bar from the lower to the upper of two numbers, between which the truth lies."""
    with rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 0.9 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for index, (low, high) in enumerate(rows.values()):
            axes.plot([low, high], [index, index], color=COLORS[0], linewidth=5, solid_capstyle="butt", alpha=0.4)
            axes.plot([low], [index], "|", color=COLORS[1], markersize=11, markeredgewidth=2)
            axes.plot([high], [index], "|", color=COLORS[0], markersize=11, markeredgewidth=2)
        axes.set_yticks(range(len(rows)), list(rows), parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _frame(axes, title, x, "")
        positive = [value for pair in rows.values() for value in pair if value > 0]
        if positive and max(positive) > 30 * min(positive):
            axes.set_xscale("log")
    return figure


def bars(values: Float[np.ndarray, " n"], title: str, x: str, y: str, color: int = 0) -> Figure:
    """How values are distributed."""
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.hist(values, bins=40, color=COLORS[color], alpha=0.85)
        _frame(axes, title, x, y)
    return figure


def images(
    rows: Sequence[Sequence[Float[np.ndarray, "height width channels"]]], names: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Images side by side: a row an example, named above each column and beside each row."""
    with rc_context(STYLE):
        size = (1.15 * len(columns) + 1.3, 1.05 * len(rows) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        grid = np.atleast_2d(figure.subplots(len(rows), len(columns), squeeze=False))
        for row, (pictures, name) in enumerate(zip(rows, names, strict=True)):
            for column, picture in enumerate(pictures):
                axes = grid[row, column]
                axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                if row == 0:
                    axes.set_title(columns[column], fontsize=8, parse_math=False)
            grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an element of a page, as wide as there is room, its ink in the page's colour."""
    target = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def png(figure: Figure) -> str:
    """The figure as an image that a page holds in itself."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=140, transparent=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


def figures(drawn: Mapping[str, Figure]) -> str:
    """Pictures side by side, as many as fit; each with what it shows, for whoever cannot see it."""
    cells = (
        f'<figure role="img" aria-label="{html.escape(name, quote=True)}">{svg(figure)}</figure>'
        for name, figure in drawn.items()
    )
    return f'<div class="grid">{"".join(cells)}</div>'


def picture(source: str, name: str, width: int) -> str:
    """An image, no wider than it is."""
    return f'<figure><img src="{source}" alt="{html.escape(name, quote=True)}" style="max-width: {width}px"></figure>'
