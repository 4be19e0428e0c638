"""Curves of a run as a picture."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipzoo.report import Record, read_metrics


def plot_run(run: Path, caps: Mapping[str, float], title: str) -> Path:
    """Writes `curves.png` into the run: loss, accuracy, and every weight's norm against its cap."""
    records = read_metrics(run / "metrics.jsonl")
    train = [record for record in records if "loss" in record]
    validation = [record for record in records if "val_loss" in record]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    figure.suptitle(title, parse_math=False)
    loss, accuracy, norms = figure.subplots(1, 3)
    _curves(loss, "loss", train, validation)
    _curves(accuracy, "accuracy", train, validation)
    _norms(norms, train, caps)
    for axes in (loss, accuracy, norms):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path = run / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _curves(axes: Axes, name: str, train: list[Record], validation: list[Record]) -> None:
    axes.set_title(name)
    axes.plot([r["step"] for r in train], [r[name] for r in train], label="training")
    axes.plot([r["step"] for r in validation], [r[f"val_{name}"] for r in validation], "o-", label="test split")


def _norms(axes: Axes, train: list[Record], caps: Mapping[str, float]) -> None:
    axes.set_title("RMS→RMS norms (dashed: caps)")
    for index, (name, cap) in enumerate(caps.items()):
        color = f"C{index % 10}"
        axes.plot([r["step"] for r in train], [r["norms"][name] for r in train], color=color, label=name)
        if math.isfinite(cap):
            axes.axhline(cap, color=color, linestyle="--", linewidth=1)
