"""Pictures of Ellipsotope-Budgeted Clipping: one run, and many."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipzoo.report.metrics import read_metrics

COLORS = {"off": "black", "l1": "C1", "l2": "C2", "exact": "C0"}
PANELS = {
    "c": ("ebc_c",),
    "τ and S": ("ebc_tau", "ebc_budget"),
    "KL and δ, nats per token": ("ebc_kl", "ebc_delta"),
    "β": ("ebc_beta_mean", "ebc_beta_max"),
    "ρ and scales": ("ebc_rho", "ebc_tau_scale", "ebc_surrogate"),
}
"""What each panel of a run shows."""


def plot_curves(path: Path, curves: Mapping[str, Sequence[float] | np.ndarray], title: str) -> None:
    """Loss over the steps, and what EBC tells."""
    panels = {"loss": ("loss",), **PANELS}
    panels = {name: [key for key in keys if key in curves] for name, keys in panels.items()}
    shown = {name: keys for name, keys in panels.items() if keys}
    steps = curves.get("step", np.arange(1, len(curves["loss"]) + 1))
    figure = Figure(figsize=(4 * len(shown), 3.4), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axes, (name, keys) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        for key in keys:
            axes.plot(steps, curves[key], label=key.removeprefix("ebc_"), linewidth=1)
        axes.set(title=name, xlabel="step")
        if name not in ("loss", "c"):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def plot_ebc(run: Path, title: str) -> None:
    """Writes `ebc.png` into a run: what its metrics.jsonl tells of EBC."""
    records = [record for record in read_metrics(run / "metrics.jsonl") if "ebc_c" in record]
    if records:
        curves = {name: [record[name] for record in records] for name in records[0] if name != "norms"}
        plot_curves(run / "ebc.png", curves, title)


def plot_pareto(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Perplexity against mean c."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, color in COLORS.items():
        chosen = [row for row in rows if row["ebc"] == name and not row["diverged"]]
        if chosen:
            points = [row["ebc_c"] for row in chosen], [row["perplexity"] for row in chosen]
            axes.scatter(*points, color=color, label=name, s=22)
    axes.set(xlabel="mean c", ylabel="perplexity, whole validation split", yscale="log")
    _finish(figure, axes, path)


def plot_headroom(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Final loss against the learning rate as a multiple of the base: mean and range over seeds; × for divergence."""
    finite = [row["final_loss"] for row in rows if not row["diverged"]]
    top = max(finite, default=1.0) + 0.1
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, chosen in _lines(rows).items():
        scales = sorted({row["lr_scale"] for row in chosen})
        losses = [[min(_loss(r), top) for r in chosen if r["lr_scale"] == scale] for scale in scales]
        color, style = COLORS[chosen[0]["ebc"]], "--" if chosen[0]["schedule"] == "lr" else "-"
        axes.plot(scales, [np.mean(values) for values in losses], style, color=color, marker="o", label=name)
        axes.fill_between(scales, [min(v) for v in losses], [max(v) for v in losses], color=color, alpha=0.15)
        gone = sorted({row["lr_scale"] for row in chosen if row["diverged"]})
        axes.plot(gone, [top] * len(gone), "x", color=color, markersize=10)
    axes.set(xlabel="learning rate / best plain learning rate", ylabel="final loss, whole validation split")
    axes.set_xscale("log", base=2)
    ticks = sorted({row["lr_scale"] for row in rows})
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    _finish(figure, axes, path)


def _loss(row: Mapping[str, Any]) -> float:
    return math.inf if row["diverged"] else row["final_loss"]


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each curve, by its label."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        kind = "plain" if row["ebc"] == "off" else f"{row['ebc']}, δ {row['delta']:.3g} {row['schedule']}"
        lines.setdefault(f"{row['optimizer']}, {row['spectral']}: {kind}", []).append(row)
    return lines


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
