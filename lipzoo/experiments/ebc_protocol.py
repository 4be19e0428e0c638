"""How an ablation finds learning rates and δ by itself, as published."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from lipzoo.constraints import ConstraintName
from lipzoo.experiments.ebc_grid import Ablation, Setting, base_lr, budgets, recipe_of
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.ablation import Row, Runner, run_name, unclipped_deltas

PRINTED = ("optimizer", "ebc", "spectral", "final_loss", "final_acc", "ebc_c")
SWEEP = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the given learning rate that --auto tries; it goes on beyond the ends while the loss falls."""
CALIBRATIONS = 8


class Missing(Exception):
    """A run that what comes after depends on has not been done."""


class Executor:
    """Runs settings and prints a line for each; with `--status` only tells which are done."""

    def __init__(self, line: Ablation, runner: Runner):
        self._line = line
        self._runner = runner

    def run(self, stage: str, settings: Sequence[Setting], base: float | None = None) -> list[Row]:
        """The rows of these settings; `base` is the learning rate whose multiples they are."""
        recipes = [recipe_of(self._line, setting).complete() for setting in settings]
        if self._line.status:
            self._tell(stage, recipes)
        rows = []
        for setting, recipe in zip(settings, recipes, strict=True):
            scale = setting.lr / (base or base_lr(self._line, setting.optimizer))
            rows.append({"stage": stage, **self._runner.run(recipe), "lr_scale": float(f"{scale:.4g}")})
            self._print(rows[-1], recipe)
        return rows

    def _tell(self, stage: str, recipes: Sequence[Recipe]) -> None:
        missing = [run_name(recipe) for recipe in recipes if self._runner.stored(recipe) is None]
        print(f"{stage}: {len(recipes) - len(missing)} of {len(recipes)} runs done", *missing[:3], sep="\n  missing: ")
        if missing:
            raise Missing

    def _print(self, row: Row, recipe: Recipe) -> None:
        if self._line.status:
            return
        if self._line.data == "synthetic":
            told = {**row, "ebc": int(row["ebc"] != "off"), "spectral": int(row["spectral"] != "none")}
            cells = (told[name] for name in PRINTED)
            print(*(f"{cell:.5g}" if isinstance(cell, float) else cell for cell in cells), sep=",", flush=True)
        else:
            told = f"loss {row['final_loss']:.4f}, clipped {row['clip_rate']:.1%}, mean c {row['ebc_c']:.3f}"
            print(f"{run_name(recipe)}: {told}, {row['per_second']:,.0f} characters/s", flush=True)


def best_lr(execute: Executor, optimizer: str, constraint: ConstraintName, start: float) -> tuple[float, list[Row]]:
    """The learning rate of least loss without EBC, first seed, in steps of 2; and the rows of the search."""
    rows: dict[float, Row] = {}

    def loss(lr: float) -> float:
        if lr not in rows:
            (rows[lr],) = execute.run("lr", [Setting(optimizer, constraint, None, "constant", 0.0, lr, 0)], start)
        return math.inf if rows[lr]["diverged"] else rows[lr]["final_loss"]

    best = min((start * scale for scale in SWEEP), key=loss)
    while best in (min(rows), max(rows)) and len(rows) < 2 * len(SWEEP):
        best = min((best / 2, best, best * 2), key=loss)
    return best, list(rows.values())


def calibrated_delta(line: Ablation, execute: Executor, start: Setting) -> tuple[float, list[Row]]:
    """The δ at which a fraction of the steps inside the band is clipped, or nearest to it; and the rows of the search.

    A step is clipped if δ is below δ·(S/τ)², so the next guess is a quantile of these over the run before, or, where
    that has been seen to be too small or too large, between what has been seen.
    """
    low, high = line.clip_band
    below, above = 0.0, math.inf
    setting, rows = start, []
    for _ in range(CALIBRATIONS):
        (row,) = execute.run("delta", [setting], start.lr)
        rows.append(row)
        if low <= row["clip_rate"] <= high:
            break
        below, above = (setting.delta, above) if row["clip_rate"] > high else (below, setting.delta)
        thresholds = unclipped_deltas(line.folder() / run_name(recipe_of(line, setting)))
        guess = float(np.quantile(thresholds, 1 - (low + high) / 2))
        guess = guess if below < guess < above else _between(below, above)
        setting = setting._replace(delta=float(f"{guess:.3g}"))
    return min(rows, key=lambda row: abs(row["clip_rate"] - (low + high) / 2))["delta"], rows


def _between(below: float, above: float) -> float:
    """A number between two, of which one is known: their geometric mean, or a step beyond the known one."""
    if math.isinf(above):
        return 8 * below
    return math.sqrt(below * above) if below else above / 8


def protocol(line: Ablation, execute: Executor) -> list[Row]:
    """Learning rate, δ, multiples of the learning rate with the first seed, then all seeds."""
    rows = []
    for optimizer, constraint in itertools.product(line.optimizers, line.constraints):
        lr, searched = best_lr(execute, optimizer, constraint, base_lr(line, optimizer))
        rows += searched
        chosen = []
        for aggregate, schedule, delta in budgets(line, line.deltas[0]):
            if aggregate is not None:
                start = Setting(optimizer, constraint, aggregate, schedule, delta, lr, line.seeds[0])
                delta, searched = calibrated_delta(line, execute, start)
                rows += searched
            chosen.append((aggregate, schedule, delta))
        for stage, seeds in (("scales", line.seeds[:1]), ("finals", line.seeds)):
            finals = itertools.product(line.lr_scales, chosen, seeds)
            settings = [Setting(optimizer, constraint, *b, lr=lr * scale, seed=seed) for scale, b, seed in finals]
            found = execute.run(stage, settings, lr)
        rows += found
    return rows
