"""Loss against certified bound of character GPTs on tiny Shakespeare: baselines, the published setting, and budgets.

    python -m benchmarks.shakespeare_table                                               # 400 steps of 16, 2 cores
    python -m benchmarks.shakespeare_table --batch-size 64 --accum-steps 1 --steps 2000  # a GPU

Continues where it was stopped. Runs lie in runs/shakespeare_table; the table is written to
benchmarks/shakespeare_table.csv and drawn in benchmarks/shakespeare_table.png.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from lipzoo.cli.run import train
from lipzoo.cli.train import parse
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.metrics import Record, read_metrics
from lipzoo.sweep.ablation import write_rows
from lipzoo.system.terminal import program
from lipzoo.theory.numbers import format_power
from recipes.shakespeare_gpt import RECIPE

PUBLISHED = (
    "--lr 1 --depth 3 --softmax-scale 1 --attention-scale 0.3333333333333333 --relative-bias 0 --activation gelu "
    "--residual-scale 1 --blocks-mass 32 --sigma-max-overrides"
)
ADAM = f"{PUBLISHED} --optimizer adamw --lr 0.002 --warmup-steps 50 --constraint none"
SETTINGS = {
    "at most 10": "",
    "at most 2": "--sigma-max-overrides head=1.999",
    "AdamW, RMSNorm": f"{ADAM} --norm rms --residual plain --qk-norm --softmax-scale 12",
    "published setting": f"{PUBLISHED} --granularity matrix --sigma-max 2",
    "at most 100": "--softmax-scale 1.5 --sigma-max-overrides head=9.4",
    "at most 10,000": "--softmax-scale 15 --sigma-max-overrides head=18",
    "AdamW, no norm": f"{ADAM} --softmax-scale 8 --no-zero-init",
    "unit norms, published parts": PUBLISHED,
    "LipsFormer, AdamW": f"{ADAM} --architecture lipsformer --softmax-scale 12",
}
"""What is added to the command line of `recipes.shakespeare_gpt`."""
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    batch_size: int = 16
    """Windows a step."""
    accum_steps: int = 4
    """Parts that a batch is computed in."""
    steps: int = 400
    """Optimizer steps of every run."""
    flags: str = ""
    """More flags for `recipes.shakespeare_gpt`, the same for each setting."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """What to compare."""
    runs: Path = Path("runs/shakespeare_table")
    """Where the runs lie."""
    out: Path = FOLDER
    """Folder that shakespeare_table.csv and its picture are written to."""


def recipe_of(name: str, line: CommandLine) -> Recipe:
    """The recipe that these flags give."""
    size = f"--batch-size {line.batch_size} --accum-steps {line.accum_steps} --steps {line.steps}"
    return parse(
        RECIPE, [*SETTINGS[name].split(), *size.split(), "--save-interval", str(line.steps), *line.flags.split()]
    ).recipe


def run_of(name: str, line: CommandLine) -> Path:
    """Trains, unless it was trained before."""
    recipe, run = recipe_of(name, line), line.runs / name.replace(" ", "-").replace(",", "").replace("'", "")
    recipe.check()
    if not (run / "certificate.json").exists():
        status = train(recipe, run, resume=(run / "recipe.json").exists())
        if status:
            raise SystemExit(status)
    return run


def row_of(name: str, run: Path) -> Row:
    """What the run's files say of it."""
    certificate = json.loads((run / "certificate.json").read_text())
    last = [record for record in read_metrics(run / "metrics.jsonl") if "val_loss" in record][-1]
    published, a_priori = certificate["published_formula"], certificate["a_priori"]
    return {
        "setting": name,
        "loss": last["val_loss"],
        "accuracy": last["val_accuracy"],
        "loss, published window": last["published_window_loss"],
        "accuracy, published window": last["published_window_accuracy"],
        "log10 certified": certificate["certified"]["log10_lipschitz"],
        "log10 a priori": a_priori["log10_lipschitz"] if a_priori["caps_hold"] else None,
        "log10 published formula": None if published is None else published["log10_lipschitz"],
    }


def plot(rows: list[Row], curves: dict[str, list[Record]], path: Path) -> None:
    """Loss against certified bound, and the losses over the steps."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, row in enumerate(rows):
        color, published = f"C{index}", row["log10 published formula"]
        left.scatter(row["log10 certified"], row["loss"], color=color, s=70, label=row["setting"])
        if published is not None:
            left.scatter(published, row["loss"], color=color, s=60, marker="x")
        training = [record for record in curves[row["setting"]] if "loss" in record]
        validation = [record for record in curves[row["setting"]] if "val_loss" in record]
        right.plot([r["step"] for r in training], [r["loss"] for r in training], color=color)
        right.plot([r["step"] for r in validation], [r["val_loss"] for r in validation], "o", color=color)
    left.set_xscale("symlog", linthresh=5)
    left.set_xticks(
        [0, 1, 2, 3, 4, 5, 10, 20, 40], labels=["1", "10", "100", *(f"10^{n}" for n in (3, 4, 5, 10, 20, 40))]
    )
    left.set(xlabel="certified Lipschitz bound (×: published formula, no bound)", ylabel="loss, whole validation split")
    right.set(xlabel="step", ylabel="training loss (dots: whole validation split)", ylim=(1.5, 3.4))
    figure.legend(loc="outside right upper", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def show(rows: list[Row]) -> None:
    """Prints the table."""
    table = Table("setting", "loss", "accuracy", "published window", "certified", "a priori", "published formula")
    for row in rows:
        window = f"{row['loss, published window']:.3f}, {row['accuracy, published window']:.1%}"
        bounds = [row[f"log10 {name}"] for name in ("certified", "a priori", "published formula")]
        shown = ["-" if value is None else format_power(value) for value in bounds]
        table.add_row(row["setting"], f"{row['loss']:.3f}", f"{row['accuracy']:.1%}", window, *shown)
    Console().print(table)


def main() -> None:
    """Trains what is missing; writes, draws and prints the table."""
    line = tyro.cli(CommandLine, prog=program(), description="Loss against certified bound on tiny Shakespeare.")
    runs = {name: run_of(name, line) for name in line.settings}
    rows = sorted((row_of(name, run) for name, run in runs.items()), key=lambda r: r["log10 certified"] or math.inf)
    write_rows(line.out / "shakespeare_table.csv", rows)
    curves = {name: read_metrics(run / "metrics.jsonl") for name, run in runs.items()}
    plot(rows, curves, line.out / "shakespeare_table.png")
    show(rows)


if __name__ == "__main__":
    benchmark(main)
