"""Accuracy and bounds of every constraint with both optimizers on CIFAR-10.

    python -m benchmarks.cifar_table            # about 20 minutes on 2 cores; continues where it was stopped

The MLP and the data are those of `recipes.cifar_mlp`, 2000 steps; runs lie in runs/cifar_table, the table is written to
benchmarks/cifar_table.csv and drawn in benchmarks/cifar_table.png.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from lipzoo.cli.run import train
from lipzoo.constraints import CONSTRAINTS, ConstraintName
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.metrics import read_metrics
from lipzoo.sweep.ablation import write_rows
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program
from recipes.cifar_mlp import RECIPE

Optimizer = Literal["muon", "adamw"]
LEARNING_RATES: dict[Optimizer, float] = {"muon": 0.1, "adamw": 0.001}
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    steps: int = 2000
    """Optimizer steps of every run."""
    optimizers: tuple[Optimizer, ...] = tuple(LEARNING_RATES)
    """Optimizers."""
    constraints: tuple[ConstraintName, ...] = tuple(CONSTRAINTS)
    """Constraints."""
    runs: Path = Path("runs/cifar_table")
    """Where the runs lie."""
    out: Path = FOLDER
    """Folder that cifar_table.csv and its picture are written to."""


def recipe_of(optimizer: Optimizer, constraint: ConstraintName, steps: int) -> Recipe:
    """The CIFAR-10 recipe with this optimizer and constraint."""
    chosen: dict[str, Any] = {"optimizer": optimizer, "lr": LEARNING_RATES[optimizer]}
    if constraint == "weight-decay":  # Muon's norms then stay under 1/λ, which is made the cap of the others.
        chosen["weight_decay"] = 1 / RECIPE.constraint.sigma_max if optimizer == "muon" else 0.1
    return dataclasses.replace(
        RECIPE,
        optimizer=dataclasses.replace(RECIPE.optimizer, **chosen),
        constraint=dataclasses.replace(RECIPE.constraint, constraint=constraint),
        training=dataclasses.replace(RECIPE.training, steps=steps, save_interval=steps),
    )


def refused(recipe: Recipe) -> bool:
    """Whether the combination cannot keep its promise (hard-cap-poly with AdamW)."""
    try:
        recipe.check()
    except UserError:
        return True
    return False


def row_of(optimizer: Optimizer, constraint: ConstraintName, line: CommandLine) -> Row | None:
    """Trains, unless it was trained before, and reads the run's files."""
    recipe, run = recipe_of(optimizer, constraint, line.steps), line.runs / f"{optimizer}-{constraint}"
    if refused(recipe):
        return None
    if not (run / "certificate.json").exists():
        status = train(recipe, run, resume=(run / "recipe.json").exists())
        if status:
            raise SystemExit(status)
    certificate = json.loads((run / "certificate.json").read_text())
    records = read_metrics(run / "metrics.jsonl")
    rates = sorted(record["images_per_second"] for record in records if "images_per_second" in record)
    a_priori = certificate["a_priori"]["lipschitz"] or math.inf
    return {
        "optimizer": optimizer,
        "constraint": constraint,
        "test accuracy": records[-1]["val_accuracy"],
        "certified": certificate["certified"]["lipschitz"],
        "a priori": a_priori if certificate["a_priori"]["caps_hold"] else math.nan,
        "ms a step": 1e3 * recipe.data.batch_size / rates[len(rates) // 2],
    }


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy against certified bound, beside the published code's two figures."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    points = [
        (r["certified"], r["test accuracy"], f"{r['optimizer']}, {r['constraint']}", r["optimizer"]) for r in rows
    ]
    points += [(14.97, 0.503, "published, soft cap 3", "published"), (10_333, 0.503, "published, AdamW", "published")]
    for kind, marker in (("muon", "o"), ("adamw", "s"), ("published", "X")):
        chosen = [point for point in points if point[3] == kind]
        axes.scatter([p[0] for p in chosen], [100 * p[1] for p in chosen], marker=marker, label=kind, s=45)
    labels: list[tuple[float, float, str]] = []
    for x, y, text, _ in sorted(points, key=lambda point: point[1]):
        name = text.split(", ", 1)[1]
        if labels and y - labels[-1][1] < 0.008 and 0.5 < x / labels[-1][0] < 2:  # Too close for two labels.
            labels[-1] = (labels[-1][0], labels[-1][1], f"{labels[-1][2]}, {name}")
        else:
            labels.append((x, y, name))
    for x, y, name in labels:
        axes.annotate(name, (x, 100 * y), xytext=(7, -3), textcoords="offset points", fontsize=8)
    axes.set_xlim(0.05, 60_000)
    axes.set(xscale="log", xlabel="certified Lipschitz bound (RMS → RMS)", ylabel="test accuracy, %")
    axes.set_title("CIFAR-10, MLP 3072-256-256-10, 2000 steps of 512")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains what is missing; writes, draws and prints the table."""
    line = tyro.cli(CommandLine, prog=program(), description="Accuracy and bounds of every constraint on CIFAR-10.")
    rows = [row for o in line.optimizers for c in line.constraints if (row := row_of(o, c, line))]
    write_rows(line.out / "cifar_table.csv", rows)
    plot(rows, line.out / "cifar_table.png")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    benchmark(main)
