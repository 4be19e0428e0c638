"""Frontiers as pictures: what is reached under each certified bound, by groups of settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipzoo.report.pictures import COLORS, INK, STYLE

STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")


class Point(NamedTuple):
    """What a setting reaches: means over seeds, the half width of the mean's interval, and whether it is on the
    frontier of its group."""

    bound: float
    value: float
    half: float
    best: bool


class Curve(NamedTuple):
    """The settings of one group, in the order of their bounds. `color`, `style`: by which it is told from others."""

    label: str
    points: Sequence[Point]
    color: int
    style: int


def plot_frontiers(path: Path, panels: Mapping[str, Sequence[Curve]], title: str, note: str) -> None:
    """A panel for each quantity, against the certified bound: faint points are settings, lines join what no other
    setting of the group with a smaller bound reaches; one legend for all."""
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 4.3 * len(panels), 4.6), layout="constrained")
        figure.suptitle(f"{title}\n{note}", parse_math=False, fontsize=10)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, curves) in zip(grid, panels.items(), strict=True):
            _panel(axes, name, curves)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
        figure.savefig(path, dpi=140, facecolor="white")


def _panel(axes: Axes, name: str, curves: Sequence[Curve]) -> None:
    axes.set_title(name, loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel("certified Lipschitz bound L (RMS → RMS)")
    axes.set_xscale("log")
    axes.grid(color=INK, alpha=0.2, linewidth=0.6)
    for curve in curves:
        color, best = COLORS[curve.color % len(COLORS)], [point for point in curve.points if point.best]
        rest = [point for point in curve.points if not point.best]
        axes.plot([p.bound for p in rest], [p.value for p in rest], ".", color=color, alpha=0.18, markersize=3)
        style, marker = STYLES[curve.style % 4], MARKERS[curve.style % 4]
        x, y, half = ([getattr(point, field) for point in best] for field in ("bound", "value", "half"))
        axes.plot(x, y, style, color=color, marker=marker, markersize=3.5, drawstyle="steps-post", label=curve.label)
        axes.errorbar(x, y, half, fmt="none", ecolor=color, elinewidth=0.8)
    shown = [point.bound for curve in curves for point in curve.points if point.best]
    axes.set_xlim(min(shown) / 1.5, max(shown) * 1.5)
    if "loss" in name:
        _leave_out_the_worst(axes, [point.value for curve in curves for point in curve.points if point.best])


def _leave_out_the_worst(axes: Axes, values: Sequence[float]) -> None:
    """Losses above that of guessing by far would leave no room for the others."""
    low, high = min(values), max(values)
    if low == high:
        return
    axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
