"""Curves of a run as a picture."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipzoo.report.metrics import Record, read_metrics


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
    for records, key, style, label in ((train, name, "-", "training"), (validation, f"val_{name}", "o-", "test split")):
        told = [record for record in records if key in record]
        axes.plot([record["step"] for record in told], [record[key] for record in told], style, label=label)


def _norms(axes: Axes, train: list[Record], caps: Mapping[str, float]) -> None:
    axes.set_title("RMS→RMS norms (dashed: caps)")
    for index, (name, cap) in enumerate(caps.items()):
        color = f"C{index % 10}"
        told = [record for record in train if name in record.get("norms", {})]
        axes.plot([r["step"] for r in told], [r["norms"][name] for r in told], color=color, label=name)
        if math.isfinite(cap):
            axes.axhline(cap, color=color, linestyle="--", linewidth=1)
