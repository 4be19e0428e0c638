"""Loss, certified bound and largest activation of variants of the 145M GPT trained alike.

    python -m benchmarks.gpt145m_table                       # a small model on Wikipedia, minutes on 2 cores
    python -m benchmarks.gpt145m_table --flags="--data wikipedia_gpt2 --steps 600 --val-interval 100"      # a GPU

Wikipedia's shards, in FineWeb10B's format, lie in the folder wikipedia_gpt2 of the data cache; losses on them do not
compare with FineWeb's. Continues where it was stopped. Runs lie in runs/gpt145m_table; the table is written to
benchmarks/gpt145m_table.csv and drawn in benchmarks/gpt145m_table.png.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from benchmarks.gpt145m import variant
from lipzoo.activations import measure
from lipzoo.cli.run import train
from lipzoo.cli.train import parse
from lipzoo.models import GPT
from lipzoo.report.metrics import read_metrics
from lipzoo.sweep.ablation import write_rows
from lipzoo.system.terminal import program
from lipzoo.theory.numbers import format_power
from lipzoo.train.checkpoint import load

SMALL = (
    "--data wikipedia_gpt2 --depth 4 --width 128 --heads 4 --window 256 --window-stages 2 --batch-size 16 "
    "--seq-len 256 --val-tokens 65536 --model-dtype float32 --msign-dtype float32 --momentum-warmup 50 "
    "--steps 150 --log-interval 10 --val-interval 50 --save-interval 150"
)
WINDOWS = 8
"""Windows of the validation split on which activations are measured."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    flags: str = SMALL
    """Flags for `recipes.gpt145m`, the same for each variant."""
    variants: tuple[str, ...] = ("sigma1", "sigma8-soft-cap", "baseline")
    """What to compare."""
    runs: Path = Path("runs/gpt145m_table")
    """Where the runs lie."""
    out: Path = FOLDER
    """Folder that gpt145m_table.csv and its picture are written to."""


def run_of(name: str, line: CommandLine) -> Path:
    """Trains, unless it was trained before."""
    run = line.runs / name
    recipe = parse(variant(name), line.flags.split()).recipe
    recipe.check()
    if not (run / "certificate.json").exists():
        status = train(recipe, run, resume=(run / "recipe.json").exists())
        if status:
            raise SystemExit(status)
    return run


def row_of(name: str, run: Path) -> dict[str, Any]:
    """What the run's files say of it, and its largest activation."""
    certificate = json.loads((run / "certificate.json").read_text())
    last = [record for record in read_metrics(run / "metrics.jsonl") if "val_loss" in record][-1]
    loaded = load(run)
    assert isinstance(loaded.model, GPT)
    test = loaded.recipe.data.load(0).tests["val"]
    rows = measure(loaded.model, test.input[:WINDOWS])
    return {
        "variant": name,
        "loss": last["val_loss"],
        "accuracy": last["val_accuracy"],
        "log10 certified": certificate["certified"]["log10_lipschitz"],
        "log10 a priori": certificate["a_priori"]["log10_lipschitz"],
        "largest activation": max(row.largest for row in rows),
        "device": jax.devices()[0].device_kind,
    }


def plot(runs: dict[str, Path], path: Path) -> None:
    """Training losses, with validation as dots."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, run) in enumerate(runs.items()):
        records = read_metrics(run / "metrics.jsonl")
        training, validation = ([r for r in records if name in r] for name in ("loss", "val_loss"))
        axes.plot([r["step"] for r in training], [r["loss"] for r in training], color=f"C{index}", label=name)
        axes.plot([r["step"] for r in validation], [r["val_loss"] for r in validation], "o", color=f"C{index}")
    axes.set(xlabel="step", ylabel="training loss (dots: validation)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Trains what is missing; writes, draws and prints the table."""
    line = tyro.cli(CommandLine, prog=program(), description="Variants of the 145M GPT trained alike.")
    runs = {name: run_of(name, line) for name in line.variants}
    rows = [row_of(name, run) for name, run in runs.items()]
    write_rows(line.out / "gpt145m_table.csv", rows)
    plot(runs, line.out / "gpt145m_table.png")
    table = Table("variant", "loss", "accuracy", "certified", "a priori", "largest activation")
    for row in rows:
        bounds = [
            "-" if row[name] is None else format_power(row[name]) for name in ("log10 certified", "log10 a priori")
        ]
        table.add_row(
            row["variant"], f"{row['loss']:.3f}", f"{row['accuracy']:.1%}", *bounds, f"{row['largest activation']:.4g}"
        )
    Console().print(table)


if __name__ == "__main__":
    benchmark(main)
