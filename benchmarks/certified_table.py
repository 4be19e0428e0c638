"""The first table of the README and its pictures, from runs that `lipzoo.evaluate` has evaluated.

    python -m benchmarks.certified_table NAME=RUN [NAME=RUN …]

Trains nothing: the README says which flags made each run. Reads evaluation.json and the arrays beside it, prints the
table, and writes benchmarks/certified_table.csv, docs/certified.png, docs/around_each.png and docs/tightness.png.
"""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from lipzoo.report.pictures import Line, lines, ranges
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program

Value = dict[str, Any]
DOCS = FOLDER.parent / "docs"
GRID = np.linspace(0, 1.2, 200)


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names and runs, as in best=runs/cifar_mlp/…"""


def main() -> None:
    """Prints the table, and writes it and its pictures."""
    line = tyro.cli(CommandLine, prog=program(), description="Certified accuracy of evaluated runs.")
    runs = dict(_pair(text) for text in line.runs)
    values = {name: _read(run) for name, run in runs.items()}
    rows = [_row(name, value) for name, value in values.items()]
    table = Table(*rows[0], title="Certified accuracy, all test images; of the first ones: around each / under attack")
    for row in rows:
        table.add_row(*row.values())
    Console(width=160).print(table)
    with (FOLDER / "certified_table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _draw(runs, values)


def _pair(text: str) -> tuple[str, Path]:
    name, _, run = text.partition("=")
    if not run:
        raise UserError(f"give names and runs as NAME=RUN, not {text!r}")
    return name, Path(run)


def _read(run: Path) -> Value:
    try:
        return json.loads((run / "evaluation.json").read_text())
    except OSError as error:
        raise UserError(f"{run} is not evaluated: python -m lipzoo.evaluate {run}") from error


def _row(name: str, value: Value) -> dict[str, str]:
    """All as in the README."""
    row = {"run": name, "clean": f"{value['clean_accuracy']:.1%}"}
    for index, epsilon in enumerate(value["epsilons_l2"]):
        cells = [f"{value['certified_accuracy'][index]:.1%}"]
        parts = (value.get("local_certified_accuracy_of_first"), value["attacked_accuracy"])
        first = [f"{part[index]:.1%}" for part in parts if part]
        row[f"{round(255 * epsilon)}/255"] = " ".join([*cells, f"({' / '.join(first)})" if first else ""]).strip()
    whole = next((part for part in value["tightness"] if part["name"] == "whole"), None)
    row["L (ℓ₂)"] = f"{value['lipschitz_l2']:.4g}"
    row["L over gain found"] = f"{whole['certified'] / whole['found']:.2f}" if whole else ""
    row["local over global"] = f"{value['median_local_to_global']:.2f}" if value.get("median_local_to_global") else ""
    return row


def _draw(runs: dict[str, Path], values: dict[str, Value]) -> None:
    everywhere, around = [], []
    for color, (name, run) in enumerate(runs.items()):
        with np.load(run / "radii.npz") as stored:
            right = stored["label"] == stored["prediction"]
            stored_local = stored["local_radius"]
            radius, local = np.where(right, stored["radius"], 0), np.where(right, stored_local, 0)
        known = ~np.isnan(stored_local)
        everywhere.append(Line(name, GRID, _beyond(radius), color))
        if known.any():
            around.append(Line(name, GRID, _beyond(local[known]), color))
            around.append(Line("", GRID, _beyond(radius[known]), color, "--"))
            with np.load(run / "adversaries.npz") as found:
                around.append(Line("", GRID, _beyond(found["distance"]), color, ":"))
    label = "ε (ℓ₂, pixels in [0, 1])"
    pictures = {
        "certified": lines(
            everywhere, "Certified accuracy, CIFAR-10", label, "accuracy", limits=(0.0, 0.65), right=1.2
        ),
        "around_each": lines(
            around,
            "Around each image (—), globally (- -), under attack (···)",
            label,
            "accuracy",
            limits=(0.0, 0.65),
            right=1.2,
        ),
        "tightness": ranges(
            {
                name: (row["found"], row["certified"])
                for name, value in values.items()
                for row in value["tightness"]
                if row["name"] == "whole"
            },
            "Largest gain found, and certified",
            "L (RMS → RMS)",
        ),
    }
    for name, figure in pictures.items():
        figure.savefig(DOCS / f"{name}.png", dpi=160, facecolor="white")


def _beyond(distances: np.ndarray) -> np.ndarray:
    return 1 - np.searchsorted(np.sort(distances), GRID, side="right") / len(distances)


if __name__ == "__main__":
    benchmark(main)
