"""The frontier of a sweep as a picture, a file and a table, with the command that trains each best setting again."""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lipzoo.frontier.settings import (
    QUANTITIES,
    Setting,
    default_bounds,
    frontier,
    rows_of,
    settings_of,
)
from lipzoo.report.frontier_plots import Curve, Point, plot_frontiers
from lipzoo.report.tables import terminal_table
from lipzoo.sweep.results import read_rows
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.streams import make_console


def table_of(rows: Sequence[Mapping[str, Any]], quantity: str) -> Table:
    """The best settings on a terminal."""
    certified = "val_certified_accuracy"
    columns = {
        "L ≤": [f"{row['at_most']:g}" for row in rows],
        "best": [row["group"] for row in rows],
        "L": [f"{row['bound']:.4g}" for row in rows],
        "loss": [f"{row['val_loss']:.4f}" for row in rows],
        "accuracy": [f"{row['val_accuracy']:.2%}" for row in rows],
        **({"certified": [f"{row[certified]:.2%}" for row in rows]} if all(certified in row for row in rows) else {}),
        "seeds": [str(row["seeds"]) for row in rows],
    }
    return terminal_table(columns, f"Best {QUANTITIES[quantity]} under each bound")


def panels(settings: Sequence[Setting]) -> dict[str, list[Curve]]:
    """For each quantity that settings have, the curve of each group: its last column tells the color, the rest the
    kind of line."""
    groups = sorted({setting.group for setting in settings})
    colors = sorted({group[-1:] for group in groups})
    styles = sorted({group[:-1] for group in groups}, reverse=True)

    def curve(told: Sequence[Setting], group: tuple[str, ...], quantity: str) -> Curve:
        own = sorted((setting for setting in told if setting.group == group), key=lambda setting: setting.bound)
        on = set(map(id, frontier(own, quantity)))
        points = [Point(s.bound, s.means[quantity], s.halves[quantity], id(s) in on) for s in own]
        return Curve(" ".join(group), points, colors.index(group[-1:]), styles.index(group[:-1]))

    told = {name: [setting for setting in settings if name in setting.means] for name in QUANTITIES}
    return {QUANTITIES[name]: [curve(s, group, name) for group in groups] for name, s in told.items() if s}


def draw_frontier(
    results: Path,
    by: Sequence[str] = ("optimizer", "constraint"),
    quantity: str = "val_loss",
    bounds: Sequence[float] = (),
    out: Path | None = None,
    title: str = "",
    keys: Collection[str] | None = None,
) -> None:
    """Writes frontier.png and frontier.csv, and prints the table: of all runs, or of those with these keys.

    **Raises:** UserError if there is nothing to draw.
    """
    rows = [row for row in read_rows(results) if keys is None or row["key"] in keys]
    settings = [setting for setting in settings_of(rows, by) if quantity in setting.means]
    if not settings:
        raise UserError(f"{results} holds no run that is done and has a bound and {quantity}")
    found = rows_of(settings, quantity, bounds or default_bounds(settings, quantity))
    if not found:
        raise UserError(f"no setting has a bound of at most {max(bounds):g}: raise --bounds")
    folder = out or (results if results.is_dir() else results.parent)
    folder.mkdir(parents=True, exist_ok=True)
    names = ", ".join(sorted({row["recipe"] for row in rows if row["recipe"]}))
    seeds = max(setting.seeds for setting in settings)
    spread = f"; bars: 95% intervals of means over up to {seeds} seeds" if seeds > 2 else ""
    note = f"{len(settings)} settings (dots); lines: the best under each bound{spread}"
    plot_frontiers(folder / "frontier.png", panels(settings), title or f"{names}: what each bound admits", note)
    write_text(folder / "frontier.csv", _csv(found))
    _tell(found, quantity, folder)


def _tell(found: Sequence[Mapping[str, Any]], quantity: str, folder: Path) -> None:
    console = make_console()
    best = [row for row in found if row["best_of_all"]]
    console.print(table_of(best, quantity))
    console.print("Each is trained again by:")
    for row in best:
        console.print(f"  L ≤ {row['at_most']:g}: {row['command']}", soft_wrap=True)
    console.print(f"wrote {folder / 'frontier.png'} and {folder / 'frontier.csv'}", soft_wrap=True)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    target = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(target, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return target.getvalue()
