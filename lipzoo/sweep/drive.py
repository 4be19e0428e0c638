"""A sweep from its first run to its last: what is refused, what is done, how far it is, and what was found."""

import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lipzoo.recipe.recipe import Recipe
from lipzoo.report.tables import terminal_table
from lipzoo.sweep.results import TABLES, Results, Row
from lipzoo.sweep.runs import Run
from lipzoo.sweep.schedule import Platform, train_all
from lipzoo.sweep.settings import told
from lipzoo.system.errors import Interrupted, UserError
from lipzoo.system.lock import held
from lipzoo.system.progress import waiting
from lipzoo.system.streams import make_console
from lipzoo.train.plan import resolve

WHOLE = "1/1"
"""The part of a sweep that is all of it."""
REFUSALS = 3
"""Refused runs that are told one by one."""
BEST = 5
"""Rows of the table at the end."""


def drive(
    runs: Sequence[Run], folder: Path, platform: Platform, *, workers: int = 0, together: int = 0, part: str = WHOLE
) -> int:
    """Trains what is not done yet. Returns 0, or 1 if a run failed. Raises UserError, or Interrupted by a signal."""
    console, results = make_console(), Results(folder)
    with held(folder, f".lock-{part.replace('/', '-of-')}"):
        try:
            _refuse(runs, results, console)
            if part == WHOLE and all(run.refusal for run in runs):
                raise UserError(f"none of {len(runs)} runs can be run: {runs[0].refusal}")
            left = [run for run in runs if not run.refusal and not results.done(run.key)]
            console.print(f"{summary(runs, results)}; results: {folder}", soft_wrap=True)
            if left:
                _train(left, results, console, platform, workers, together)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            raise Interrupted(f"interrupted: {summary(runs, results)}; the same command goes on", number) from error
        finally:
            results.close()
    rows = [results.rows[run.key] for run in runs if run.key in results.rows]
    if rows:
        _finish(rows, folder, console)
    return int(any(row["status"] == "failed" for row in rows))


def summary(runs: Sequence[Run], results: Results) -> str:
    """How many runs there are, and how they have ended."""
    ended = Counter(results.rows[run.key]["status"] for run in runs if run.key in results.rows)
    left = sum(not run.refusal and not results.done(run.key) for run in runs)
    parts = [f"{count} {status}" for status, count in ended.items()] + ([f"{left} to do"] if left else [])
    return f"{len(runs)} runs: {', '.join(parts)}" if runs else "no run: nothing is to be done"


def _refuse(runs: Sequence[Run], results: Results, console: Console) -> None:
    """Notes the runs that cannot be run, and tells some of them."""
    refused = [run for run in runs if run.refusal]
    for run in refused:
        if run.key not in results.rows:
            results.add(_row(run, {"key": run.key, "status": "refused", "reason": run.refusal}))
    vary = varying(runs)
    for run in refused[:REFUSALS]:
        console.print(f"refused: {told(_given(run, vary))}: {run.refusal}", soft_wrap=True)
    if len(refused) > REFUSALS:
        console.print(f"… and {len(refused) - REFUSALS} more: their reasons are in the results")


def varying(runs: Sequence[Run]) -> set[str]:
    """The fields in which runs differ: lines name these alone."""
    seen: dict[str, set[object]] = {}
    for run in runs:
        for name, value in run.setting.items():
            seen.setdefault(name, set()).add(value)
    return {name for name, values in seen.items() if len(values) > 1}


def _given(run: Run, names: set[str]) -> dict[str, object]:
    return {name: value for name, value in run.setting.items() if value is not None and name in names}


def _row(run: Run, row: Row) -> Row:
    """A row with what it was made from; what was trained may have been fitted, and what does nothing is empty."""
    idle = {name: None for name, value in run.setting.items() if value is None}
    return {"recipe": run.recipe.name, **run.setting, **row, **idle, "command": run.command}


def _train(
    runs: Sequence[Run], results: Results, console: Console, platform: Platform, workers: int, together: int
) -> None:
    with waiting("preparing", len(runs), console) as wait:
        resolved = []
        for run in runs:
            resolved.append((resolve(run.recipe.complete())[0], run))
            wait.advance()
    for recipe in {run.recipe.data: run.recipe for run in runs}.values():
        _check_data(recipe)
    known, vary, start = {run.key: run for run in runs}, varying(runs), time.monotonic()
    with waiting("sweep", len(runs), console) as wait:

        def tell(row: Row) -> None:
            run = known[row["key"]]
            results.add(_row(run, row))
            wait.advance()
            console.print(f"{told(_given(run, vary)) or run.recipe.name}: {ending(row)}", soft_wrap=True)

        train_all(resolved, results.folder, workers, together, platform.is_cpu(), tell)
    minutes = (time.monotonic() - start) / 60
    console.print(f"{len(runs)} runs in {minutes:.1f} min: {len(runs) / minutes:.1f} a minute")


def _check_data(recipe: Recipe) -> None:
    """Data that are missing are downloaded once, and before any run begins."""
    recipe.data.load(recipe.training.seed)


def ending(row: Row) -> str:
    """What a run has come to, in a line."""
    if row["status"] != "done":
        return f"{row['status']}: {row['reason']}"
    parts = [f"loss {row['val_loss']:.4f}", f"accuracy {row['val_accuracy']:.2%}"]
    parts += [f"L {row['val_lipschitz']:.4g}"] if row.get("val_lipschitz") is not None else []
    certified = row.get("val_certified_accuracy")
    parts += [f"certified {certified:.2%}"] if certified is not None else []
    return f"{', '.join(parts)} ({row['seconds']:.1f} s)"


def _finish(rows: Sequence[Row], folder: Path, console: Console) -> None:
    """The best runs, and where to find all."""
    done = sorted((row for row in rows if row["status"] == "done"), key=lambda row: row["val_loss"])[:BEST]
    if done:
        columns = {
            "command": [row["command"].removeprefix("python -m recipes.") for row in done],
            "loss": [f"{row['val_loss']:.4f}" for row in done],
            "accuracy": [f"{row['val_accuracy']:.2%}" for row in done],
            "L": [f"{row['val_lipschitz']:.4g}" if row.get("val_lipschitz") else "" for row in done],
        }
        console.print(terminal_table(columns, "Least loss"))
    console.print(f"wrote {' and '.join(str(folder / name) for name in TABLES)}", soft_wrap=True)
    console.print(f"lipzoo frontier {folder / TABLES[0]} draws them", soft_wrap=True)
