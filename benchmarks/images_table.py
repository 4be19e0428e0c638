"""Certified accuracy of networks on images, each trained from its command line within about the same CPU time.

    python -m benchmarks.images_table                         # hours on 2 cores; goes on where it was stopped
    python -m benchmarks.images_table --names shiftnet-xs aol # some of them

Runs lie in runs/images_table. The table, of all test images, is written to benchmarks/images_table.csv and printed:
clean and certified accuracy, parameters, the CPU minutes of training (but for what was killed), and the command.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from lipzoo.sweep.ablation import write_rows
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program
from lipzoo.theory.weight import weights
from lipzoo.train.load import load

SHARP = "--sigma-max 1 --activation maxmin --temperature 35"
OTHERS = "--optimizer adamw --lr 0.002 --certify-at 36/255"
COMMANDS = {
    "mlp-256": f"recipes.cifar_mlp {SHARP} --steps 6000",
    "mlp-1024": f"recipes.cifar_mlp {SHARP} --width 1024 --depth 4 --steps 2500",
    "shiftnet-xs": "recipes.cifar_shiftnet --size xs --steps 3000",
    "shiftnet-s": "recipes.cifar_shiftnet --size s --steps 7000",
    "convnet": "recipes.cifar_convnet --steps 1000",
    "vit": "recipes.cifar_vit --steps 1500",
    **{f"mlp-256 {kind}": f"recipes.cifar_mlp --layer {kind} {OTHERS} --steps 3000" for kind in ("aol", "sll", "cpl")},
    **{f"mlp-256 {kind}": f"recipes.cifar_mlp --layer {kind} {OTHERS} --steps 1500" for kind in ("cayley", "bjorck")},
    "mlp-256 sandwich": f"recipes.cifar_mlp --layer sandwich {OTHERS} --steps 1500",
}
"""What is trained, by the names of the table."""
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    names: tuple[str, ...] = tuple(COMMANDS)
    """Which of them; a name also stands for those that end in it."""
    flags: str = ""
    """Flags for all of them, as in --flags="--steps 10"."""
    runs: Path = Path("runs/images_table")
    """Where the runs lie."""
    out: Path = FOLDER
    """Folder that images_table.csv is written to."""


def chosen(names: tuple[str, ...]) -> list[str]:
    """The full names. Raises UserError for one that is none."""
    found = [[full for full in COMMANDS if full in (name, f"mlp-256 {name}")] for name in names]
    if unknown := [name for name, full in zip(names, found, strict=True) if not full]:
        raise UserError(f"there is no {unknown[0]!r}: choose from {', '.join(COMMANDS)}")
    return [full for part in found for full in part]


def row_of(name: str, line: CommandLine) -> Row:
    """Trains and evaluates, unless that was done before, and reads the run's files."""
    words, run = shlex.split(f"{COMMANDS[name]} {line.flags}"), line.runs / name.replace(" ", "-")
    if not (run / "certificate.json").exists():
        begun = (run / "recipe.json").exists()
        minutes = _started([words[0], *(["--resume", str(run)] if begun else [*words[1:], "--run-dir", str(run)])])
        with (run / "cpu_minutes.json").open("a") as file:  # One line each time that it was started.
            file.write(f"{minutes}\n")
    if not (run / "evaluation.json").exists():
        _started(["lipzoo.evaluate", str(run), "--images", "0"])
    found = json.loads((run / "evaluation.json").read_text())
    accuracy = dict(zip(found["epsilons_l2"], found["certified_accuracy"], strict=True))
    return {
        "network": name,
        "parameters": sum(int(np.prod(weight.array.shape)) for weight in weights(load(run).model)),
        "clean": found["clean_accuracy"],
        **{f"{round(255 * epsilon)}/255": value for epsilon, value in accuracy.items()},
        "L (ℓ₂)": found["lipschitz_l2"],
        "CPU minutes": sum(float(text) for text in (run / "cpu_minutes.json").read_text().split()),
        "command": shlex.join(["python", "-m", *words]),
    }


def _started(words: list[str]) -> float:
    """Runs a module to its end. Returns the CPU minutes that it took; exits as it does if it fails."""
    before = os.times()
    status = subprocess.run([sys.executable, "-m", *words]).returncode
    if status:
        raise SystemExit(status)
    after = os.times()
    return (after.children_user + after.children_system - before.children_user - before.children_system) / 60


def main() -> None:
    """Trains and evaluates what is missing; writes and prints the table."""
    line = tyro.cli(CommandLine, prog=program(), description="Certified accuracy of networks on CIFAR-10.")
    rows = [row_of(name, line) for name in chosen(line.names)]
    write_rows(line.out / "images_table.csv", rows)
    table = Table(*(name for name in rows[0] if name != "command"))
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in row.items() if name != "command"]
        table.add_row(*cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    benchmark(main)
