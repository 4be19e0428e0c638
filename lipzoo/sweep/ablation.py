"""Many short runs of equal shapes: each is a recipe, and those that differ in numbers alone share one compiled step."""

import contextlib
import csv
import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from lipzoo.data import Data
from lipzoo.devices.mesh import make_mesh
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.together import train_together
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.progress import started
from lipzoo.train.evaluate import make_evaluate

Row = dict[str, Any]
Curves = dict[str, np.ndarray]


def ebc_name(recipe: Recipe) -> str:
    """off, or how the budget is made."""
    return recipe.ebc.aggregate if recipe.ebc.enable else "off"


def run_name(recipe: Recipe) -> str:
    """A name by what the runs of an ablation differ in."""
    parts = [recipe.optimizer.optimizer, recipe.constraint.constraint, ebc_name(recipe)]
    if recipe.ebc.enable:
        options = ["calibrated"] if recipe.ebc.surrogate.enable else []
        options += [f"refined{recipe.ebc.refine}"] if recipe.ebc.refine else []
        parts += [recipe.ebc.target_schedule, *options, f"delta{recipe.ebc.target_kl:.4g}"]
    return "-".join([*parts, f"lr{recipe.optimizer.lr:.4g}", f"seed{recipe.training.seed}"])


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """Inside, XLA optimizes little: for runs that take less time than their compilation."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def progress() -> Progress:
    """A bar on stderr that goes when the run has ended: stdout is for results."""
    columns = TextColumn("{task.description}"), BarColumn(bar_width=8), MofNCompleteColumn()
    console = Console(stderr=True)
    quiet = not console.is_terminal
    return Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False, disable=quiet
    )


class Runner:
    """Runs recipes on the same data; what has been run before is read from the folder."""

    def __init__(self, like: Recipe, data: Data, folder: Path):
        self._data = data
        self._folder = folder
        self._evaluate = make_evaluate(like, make_mesh(), data)

    def stored(self, recipe: Recipe) -> Row | None:
        """The result of an earlier run of this recipe, or None."""
        path = self._folder / run_name(recipe) / "result.json"
        if not path.exists():
            return None
        value = json.loads(path.read_text())
        if Recipe.from_json(value["recipe"]) != recipe:
            raise UserError(f"{path.parent} was run with other settings: choose another --out, or delete it")
        return value["result"]

    def run(self, recipe: Recipe) -> Row:
        """The result of a recipe: from an earlier run, or trained now."""
        if (stored := self.stored(recipe)) is not None:
            return stored
        recipe.check()
        row, curves = self._train(recipe)
        folder = self._folder / run_name(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        write_curves(folder / "curves.csv", curves)
        from lipzoo.report.ebc_plots import plot_curves

        plot_curves(folder / "curves.png", curves, run_name(recipe))
        write_text(folder / "result.json", json.dumps({"result": row, "recipe": recipe.to_json()}, indent=1) + "\n")
        return row

    def _train(self, recipe: Recipe) -> tuple[Row, Curves]:
        name, steps = run_name(recipe), recipe.training.steps
        with started(progress()) as bar:
            task = bar.add_task(f"{name}: compiling", total=steps)
            watch = functools.partial(_show, bar, task, name)
            (trained,) = train_together([recipe], lambda _: self._data, watch)
        _, size = recipe.data.unit
        speed = (len(trained.curves["loss"]) - 1) * recipe.data.batch_size * size / trained.seconds
        values = self._evaluate(trained.model)
        return result_of(recipe, values, trained.curves, trained.seconds, speed), trained.curves


def _show(bar: Progress, task: TaskID, name: str, step: int) -> None:
    bar.update(task, completed=step, description=name)


def result_of(recipe: Recipe, values: dict[str, float], curves: Curves, seconds: float, speed: float) -> Row:
    """A row of the summary. A run has diverged if its loss is not finite or above that of a uniform guess."""
    loss = values["val_loss"]
    classes = recipe.data.sizes.classes
    clipped = curves.get("ebc_clipped", np.zeros(1))
    ratios = kl_ratios(recipe, curves)
    return {
        "optimizer": "adam" if recipe.optimizer.optimizer == "adamw" else recipe.optimizer.optimizer,
        "ebc": ebc_name(recipe),
        "spectral": recipe.constraint.constraint,
        "delta": recipe.ebc.target_kl if recipe.ebc.enable else None,
        "schedule": recipe.ebc.target_schedule if recipe.ebc.enable else None,
        "lr": recipe.optimizer.lr,
        "seed": recipe.training.seed,
        "steps": recipe.training.steps,
        "final_loss": loss,
        "final_acc": values["val_accuracy"],
        "perplexity": math.exp(min(loss, 700.0)),
        "ebc_c": float(curves.get("ebc_c", np.ones(1)).mean()),
        "clip_rate": float(clipped.mean()),
        "kl_ratio_median": float(np.median(ratios)) if ratios.size else None,
        "kl_ratio_within_20": float((np.abs(ratios - 1) <= 0.2).mean()) if ratios.size else None,
        "kl_measured": int(ratios.size),
        "diverged": not loss <= math.log(classes),
        "seconds": round(seconds, 2),
        "per_second": round(speed, 1),
    }


def kl_ratios(recipe: Recipe, curves: Curves) -> np.ndarray:
    """Applied KL over target, at the steps that were clipped and measured."""
    if not recipe.ebc.enable:
        return np.zeros(0)
    peak = recipe.optimizer.lr
    schedule = (curves["lr"] / peak) ** 2 if recipe.ebc.target_schedule == "lr" else np.ones_like(curves["lr"])
    target = curves["ebc_delta"] * schedule
    measured = np.arange(len(target)) % recipe.ebc.update_every == 0
    chosen = measured & (curves["ebc_c"] < 1) & (target > 0)
    return curves["ebc_kl"][chosen] / target[chosen]


def unclipped_deltas(folder: Path) -> np.ndarray:
    """For each step of a run with EBC the δ at which it would just not have been clipped: δ·(S/τ)²."""
    with (folder / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    delta, budget, tau = (np.array([float(r[f"ebc_{n}"]) for r in rows]) for n in ("delta", "budget", "tau"))
    return (delta * (budget / np.maximum(tau, 1e-30)) ** 2)[tau > 0]


def write_curves(path: Path, curves: Curves) -> None:
    """One row a step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *curves])
        for step, values in enumerate(zip(*curves.values(), strict=True), 1):
            writer.writerow([step, *(f"{value:.6g}" for value in values)])


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A table as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
