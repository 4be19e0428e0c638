"""How far steps move predictions: what is proved before training, what is measured, and what a trust region holds.

    python -m benchmarks.spikes                 # about 30 minutes on 2 cores; continues where it was stopped

The recipes `cifar_mlp` and `shakespeare_gpt` (4 windows a step) at ½, 1, 2 and 4 times their learning rates, the first
also by AdamW without caps at rising ones, the second also under the exact trust region. Runs lie in runs/spikes;
benchmarks/spikes.csv has the table, benchmarks/spikes.png the curves. All of this is of the largest token of a batch.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from lipzoo.cli.run import train
from lipzoo.recipe.largest_step import largest_step
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.metrics import read_metrics
from lipzoo.sweep.ablation import write_rows
from lipzoo.system.terminal import program
from recipes import cifar_mlp, shakespeare_gpt

FACTORS = (0.5, 1.0, 2.0, 4.0)
ADAM_RATES = (0.001, 0.0081, 0.065)
DELTA = 0.02
LEAST = 1e-6
"""Nats that are drawn, at least."""
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    steps: int = 200
    """Steps of every run."""
    recipes: tuple[str, ...] = ("cifar_mlp", "shakespeare_gpt")
    """Recipes."""
    runs: Path = Path("runs/spikes")
    """Where the runs lie."""
    out: Path = FOLDER
    """Folder that spikes.csv and the picture are written to."""


def changed(recipe: Recipe, part: str, **options: Any) -> Recipe:
    """A recipe with other options of one part."""
    return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), **options)})


def variants(name: str, steps: int) -> dict[str, Recipe]:
    """The recipes of the table, by what they are called there."""
    base = {"cifar_mlp": cifar_mlp.RECIPE, "shakespeare_gpt": shakespeare_gpt.RECIPE}[name]
    settings = {"steps": steps, "save_interval": steps, "val_interval": steps, "log_interval": 1, "accum_steps": 1}
    base = changed(base, "training", **settings, measure_steps=True)
    if name == "shakespeare_gpt":
        base = changed(base, "data", batch_size=4)
    found = {f"{factor:g} × lr": changed(base, "optimizer", lr=factor * base.optimizer.lr) for factor in FACTORS}
    if name == "shakespeare_gpt":
        found["1 × lr, trust region"] = changed(base, "ebc", enable=True, aggregate="exact", target_kl=DELTA)
        return found
    free = changed(base, "constraint", constraint="none")
    for rate in ADAM_RATES:
        found[f"AdamW {rate:g}, no caps"] = changed(free, "optimizer", optimizer="adamw", lr=rate, polynomial="six-row")
    return found


def row_of(name: str, label: str, recipe: Recipe, runs: Path) -> Row:
    """Trains, unless it was trained before, and reads what it told."""
    run = runs / name / label.replace(" ", "-")
    if not (run / "certificate.json").exists():
        train(recipe, run, resume=(run / "recipe.json").exists())
    told = [record for record in read_metrics(run / "metrics.jsonl") if "largest_kl" in record]
    losses, most = [record["loss"] for record in told], largest_step(recipe.complete())
    rises = [after - before for before, after in itertools.pairwise(losses)]
    return {
        "recipe": name,
        "run": label,
        "proved_logit": most.logit,
        "measured_logit": max(record["largest_logit_change"] for record in told),
        "proved_kl": most.kl,
        "measured_kl": max(record["largest_kl"] for record in told),
        "largest_rise": max(rises, default=math.nan),
        "last_loss": sum(losses[-10:]) / len(losses[-10:]),
        "told": told,
    }


def draw(path: Path, rows: list[Row]) -> None:
    """Loss curves, and what steps do to predictions: measured, proved (dashed), and held by the trust region."""
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    figure = Figure(figsize=(11, 4 * len(names)), layout="constrained")
    for name, (left, right) in zip(names, figure.subplots(len(names), 2, squeeze=False), strict=True):
        for index, row in enumerate(row for row in rows if row["recipe"] == name):
            _curves(left, right, row, f"C{index}")
        left.set(title=f"{name}: loss", xlabel="step", yscale="log")
        right.set(title="largest change of a prediction, nats (dashed: proved)", xlabel="step", yscale="log")
        right.set_ylim(bottom=LEAST)
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _curves(left: Axes, right: Axes, row: Row, color: str) -> None:
    steps = [record["step"] for record in row["told"]]
    left.plot(steps, [record["loss"] for record in row["told"]], color=color, label=row["run"], linewidth=1)
    right.plot(steps, [record["largest_kl"] for record in row["told"]], color=color, label=row["run"], linewidth=1)
    if math.isfinite(row["proved_kl"]):
        right.axhline(row["proved_kl"], color=color, linestyle="--", linewidth=1)
    if "ebc_kl" in row["told"][0]:
        applied = [record["ebc_kl"] for record in row["told"]]
        right.plot(steps, applied, ":", color="black", label="mean over the probe, held by the trust region")


def main() -> None:
    """Trains and prints the table."""
    line = tyro.cli(CommandLine, prog=program(), description="How far steps move predictions, proved and measured.")
    rows = [
        row_of(name, label, recipe, line.runs)
        for name in line.recipes
        for label, recipe in variants(name, line.steps).items()
    ]
    shown = [{key: value for key, value in row.items() if key != "told"} for row in rows]
    table = Table(*shown[0])
    for row in shown:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console(width=130).print(table)
    line.out.mkdir(parents=True, exist_ok=True)
    write_rows(line.out / "spikes.csv", shown)
    draw(line.out / "spikes.png", rows)


if __name__ == "__main__":
    benchmark(main)
