"""Runs a minute of a sweep: one by one, many in one vmapped step, and one process a core; and where the time goes.

    python -m benchmarks.sweep_speed

Each arrangement is `lipzoo sweep` as it is, from its start to its end, of the same 16 runs: learning rates × seeds.
Results are compared with those of the runs one by one. The floor is the time of the matrix products alone, each timed
in its own shape on one core, with all cores at work and nothing else.
"""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax
import tyro
from jax.interpreters.partial_eval import dce_jaxpr
from rich.console import Console
from rich.table import Table

from benchmarks import benchmark
from benchmarks.cifar_step import product_time, products
from lipzoo.devices.mesh import make_mesh, place
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.results import read_rows
from lipzoo.sweep.runs import base_of
from lipzoo.system.terminal import program
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of

RUNS = ["--lr", "log:0.02:0.2:4", "--seed", "0", "1", "2", "3"]
STEPS = {"digits_mlp": 500, "cifar_mlp": 300}


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    recipes: tuple[str, ...] = ("digits_mlp", "cifar_mlp")
    """Recipes."""
    arrangements: tuple[str, ...] = ("1x1", "1x4", "1x16", "2x1", "2x2", "2x8")
    """Processes × runs in one compiled step. The first is what others are compared with."""
    steps: int = 0
    """Steps of a run; 0 for 500 of digits and 300 of CIFAR-10."""
    out: Path = Path("benchmarks")
    """Folder of sweep_speed.json."""


def measure(recipe: str, arrangement: str, steps: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a sweep, and its rows in the order of their keys."""
    workers, together = arrangement.split("x")
    with tempfile.TemporaryDirectory() as folder:
        words = [recipe, *RUNS, "--steps", str(steps), "--workers", workers, "--together", together, "--out", folder]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lipzoo.sweep", *words], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start, sorted(read_rows(Path(folder)), key=lambda row: row["key"])


def floor(recipe: Recipe, sets: Sequence[set[int]]) -> tuple[float, float]:
    """Seconds of the matrix products of one step, and of getting its batch, by processes that each have a set of cores,
    all at work: per step of any."""
    code = f"from benchmarks.sweep_speed import own_floor; print(*own_floor({recipe.name!r}, {{}}))"
    words = [[sys.executable, "-c", code.format(cores)] for cores in sets]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in words]
    told = [[float(word) for word in process.communicate()[0].split()] for process in started]
    multiply, fetch = (max(times) / len(sets) for times in zip(*told, strict=True))
    return multiply, fetch


def own_floor(name: str, cores: set[int]) -> tuple[float, float]:
    """Seconds of the matrix products of one step of a recipe, and of getting its batch, in this process."""
    os.sched_setaffinity(0, cores)
    recipe = base_of(name, None).recipe
    mesh = make_mesh()
    data = recipe.data.load(0).batches(batch_size=recipe.data.batch_size, count=101, seed=0)
    traced = jax.make_jaxpr(step_of(recipe, mesh))(init_state(recipe, mesh), next(data)).jaxpr
    live, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    multiply = sum(product_time(shapes) * count for shapes, count in collections.Counter(products(live)).items())
    start = time.perf_counter()
    jax.block_until_ready([place(batch, mesh) for batch in data])
    return multiply, (time.perf_counter() - start) / 100


def parts(name: str, steps: int, console: Console) -> dict[str, float]:
    """Seconds that all runs' products and batches take alone: each core by itself, and one process on all of them."""
    recipe, cores = base_of(name, None).recipe, os.sched_getaffinity(0)
    found: dict[str, float] = {}
    for kind, sets in (("a core each", [{core} for core in sorted(cores)]), ("one process", [cores])):
        multiply, fetch = (seconds * steps * 16 for seconds in floor(recipe, sets))
        console.print(f"{kind}: products alone {multiply:.1f} s, batches alone {fetch:.1f} s")
        found |= {f"products, {kind}": multiply, f"batches, {kind}": fetch}
    return found


def main() -> None:
    """Prints the table, and writes it."""
    line = tyro.cli(CommandLine, prog=program(), description="Runs a minute of sweeps.")
    found: dict[str, Any] = {"date": str(date.today()), "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    console = Console(width=130)
    for name in line.recipes:
        steps = line.steps or STEPS[name]
        table = Table(
            *("processes × together", "s", "runs a minute", "÷ one by one", "s in steps", "s to first steps", "Δ loss"),
            title=f"{name}, 16 runs of {steps} steps",
        )
        results = {arrangement: measure(name, arrangement, steps) for arrangement in line.arrangements}
        first, alone = results[line.arrangements[0]]
        rows: list[dict[str, Any]] = []
        for arrangement, (seconds, told) in results.items():
            off = max(abs(a["val_loss"] - b["val_loss"]) for a, b in zip(alone, told, strict=True))
            workers = int(arrangement.split("x")[0])
            inside, before = (sum(row[key] for row in told) / workers for key in ("seconds", "seconds_to_first_step"))
            row = {"arrangement": arrangement, "seconds": seconds, "runs_a_minute": 60 * len(told) / seconds}
            row |= {"gain": first / seconds, "in_steps": inside, "to_first_steps": before, "largest_loss_change": off}
            rows.append(row)
            cells = (seconds, row["runs_a_minute"], row["gain"], inside, before)
            table.add_row(arrangement, *(f"{cell:.3g}" for cell in cells), f"{off:.1e}")
        console.print(table)
        found[name] = {"steps": steps, "arrangements": rows, **parts(name, steps, console)}
    (line.out / "sweep_speed.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    benchmark(main)
