"""Curves of a run as a picture."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipzoo.report.metrics import Record, read_metrics


def plot_run(run: Path, caps: Mapping[str, float], title: str) -> Path:
    """Writes `curves.png` into the run: loss, accuracy (certified too), every weight's norm against its cap, and the
    certified bound."""
    records = read_metrics(run / "metrics.jsonl")
    train = [record for record in records if "loss" in record]
    validation = [record for record in records if "val_loss" in record]
    proved = [record for record in validation if math.isfinite(record.get("val_lipschitz", math.nan))]
    measured = [record for record in train if "largest_kl" in record]
    more = [_bound] * bool(proved) + [_changes] * bool(measured)
    figure = Figure(figsize=(13 + 4 * len(more), 3.8), layout="constrained")
    figure.suptitle(title, parse_math=False)
    loss, accuracy, norms, *others = figure.subplots(1, 3 + len(more))
    _curves(loss, "loss", train, validation)
    _curves(accuracy, "accuracy", train, validation)
    _norms(norms, train, caps)
    certified = [record for record in validation if "val_certified_accuracy" in record]
    if certified:
        told = [record["step"] for record in certified], [record["val_certified_accuracy"] for record in certified]
        accuracy.plot(*told, "s--", label="certified at ℓ₂ 36/255")
    for axes, draw in zip(others, more, strict=True):
        draw(axes, proved if draw is _bound else measured)
    for axes in (loss, accuracy, norms, *others):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path = run / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _curves(axes: Axes, name: str, train: list[Record], validation: list[Record]) -> None:
    axes.set_title(name)
    told_of = (train, name, "-", "training"), (validation, f"val_{name}", "o-", "test split")
    averaged = any(f"ema_val_{name}" in record for record in validation)
    for records, key, style, label in (*told_of, *[(validation, f"ema_val_{name}", "^:", "… of the mean")] * averaged):
        told = [record for record in records if key in record]
        axes.plot([record["step"] for record in told], [record[key] for record in told], style, label=label)


def _bound(axes: Axes, proved: list[Record]) -> None:
    axes.set_title("certified L (RMS → RMS)")
    axes.plot([r["step"] for r in proved], [r["val_lipschitz"] for r in proved], "o-", label="certified")
    if max(r["val_lipschitz"] for r in proved) > 100 * min(r["val_lipschitz"] for r in proved) > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _changes(axes: Axes, measured: list[Record]) -> None:
    axes.set_title("largest change of a step on its batch")
    for key, label in (("largest_logit_change", "a logit"), ("largest_kl", "a prediction, nats")):
        axes.plot([r["step"] for r in measured], [r[key] for r in measured], label=label)
    axes.set_yscale("log")


def _norms(axes: Axes, train: list[Record], caps: Mapping[str, float]) -> None:
    axes.set_title("RMS→RMS norms (dashed: caps)")
    for index, (name, cap) in enumerate(caps.items()):
        color = f"C{index % 10}"
        told = [record for record in train if name in record.get("norms", {})]
        axes.plot([r["step"] for r in told], [r["norms"][name] for r in told], color=color, label=name)
        if math.isfinite(cap):
            axes.axhline(cap, color=color, linestyle="--", linewidth=1)
