"""Settings of a sweep with the means of their seeds, and which of them are best under each certified bound."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lipzoo.sweep.results import Row
from lipzoo.system.errors import UserError

QUANTITIES = {
    "val_loss": "validation loss",
    "val_accuracy": "accuracy",
    "val_certified_accuracy": "certified accuracy (ℓ₂ 36/255)",
}
"""Columns that are drawn against the bound, where rows have them; of the first the least is best."""
ANOTHER = "another column, or leave --by out"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting with the means of its seeds.

    **Attributes:**

    - `group`: what it is drawn with. `bound`: the geometric mean of the certified bounds.
    - `means`, `halves`: of each quantity, and half its 95% interval, 0 for fewer than three seeds.
    - `seeds`: how many. `command`: of the first.
    """

    group: tuple[str, ...]
    bound: float
    means: Mapping[str, float]
    halves: Mapping[str, float]
    seeds: int
    command: str


def settings_of(rows: Iterable[Row], by: Sequence[str]) -> list[Setting]:
    """The settings of a table, those with a run that has diverged left out. Raises UserError for unknown columns."""
    found: dict[str, list[Row]] = {}
    if "seed" in by:
        raise UserError("runs that differ in their seed alone are one setting: leave seed out of --by")
    for row in rows:
        if missing := [name for name in by if name not in row]:
            raise UserError(f"the results have no column {missing[0]!r}: choose {ANOTHER}")
        if row["status"] in ("done", "diverged"):
            found.setdefault(_without_seed(row["settings"]), []).append(row)
    return [_setting(same, by) for same in found.values() if all(_bounded(row) for row in same)]


def _without_seed(settings: str) -> str:
    value = json.loads(settings)
    value["training"].pop("seed", None)
    return json.dumps(value, sort_keys=True)


def _bounded(row: Row) -> bool:
    return row["status"] == "done" and (row.get("val_lipschitz") or 0) > 0 and math.isfinite(row["val_lipschitz"])


def _setting(rows: Sequence[Row], by: Sequence[str]) -> Setting:
    known = [name for name in QUANTITIES if all(row.get(name) is not None for row in rows)]
    values = {name: [row[name] for row in rows] for name in known}
    bound = math.exp(float(np.mean([math.log(row["val_lipschitz"]) for row in rows])))
    group = tuple(str(rows[0][name]) for name in by)
    means = {name: float(np.mean(column)) for name, column in values.items()}
    halves = {name: _half(column) for name, column in values.items()}
    first = min(rows, key=lambda row: row.get("seed") or 0)
    return Setting(group, bound, means, halves, len(rows), first["command"])


def _half(values: Sequence[float]) -> float:
    """Half the 95% interval of a mean; two values say too little for one."""
    if len(values) < 3:
        return 0.0
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def better(quantity: str, a: float, b: float) -> bool:
    """Whether a is better than b."""
    return a < b if quantity == "val_loss" else a > b


def frontier(settings: Sequence[Setting], quantity: str) -> list[Setting]:
    """Those than which no other with a smaller bound is as good, in the order of their bounds."""
    chosen: list[Setting] = []
    sign = 1 if quantity == "val_loss" else -1
    for setting in sorted(settings, key=lambda setting: (setting.bound, sign * setting.means[quantity])):
        if not chosen or better(quantity, setting.means[quantity], chosen[-1].means[quantity]):
            chosen.append(setting)
    return chosen


def best_under(settings: Sequence[Setting], quantity: str, bound: float) -> Setting | None:
    """The best setting whose bound is at most this; None if there is none."""
    under = frontier([setting for setting in settings if setting.bound <= bound], quantity)
    return under[-1] if under else None


def default_bounds(settings: Sequence[Setting], quantity: str) -> list[float]:
    """Round numbers from above the smallest bound to above the largest on any group's frontier, at most about twelve:
    1, 2 and 5 times powers of ten, or fewer."""
    groups = {setting.group for setting in settings}
    best = [s for group in groups for s in frontier([s for s in settings if s.group == group], quantity)]
    low, high = min(setting.bound for setting in best), max(setting.bound for setting in best)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        steps = [float(f"{digit}e{power}") for power in powers for digit in digits]
        last = min(bound for bound in steps if bound >= high)
        inside = [bound for bound in steps if low <= bound <= last]
        if len(inside) <= 12:
            return inside
    return [*inside[:: math.ceil(len(inside) / 12)], inside[-1]]


def rows_of(settings: Sequence[Setting], quantity: str, bounds: Sequence[float]) -> list[dict[str, Any]]:
    """For each bound the best setting under it, of all and of each group; a bound that adds nothing is left out."""
    found = []
    for group in [None, *sorted({setting.group for setting in settings})]:
        own, last = [setting for setting in settings if group in (None, setting.group)], None
        for bound in sorted(bounds):
            best = best_under(own, quantity, bound)
            if best is not None and best is not last:
                found.append(_row(best, quantity, bound, group is None))
            last = best
    return sorted(found, key=lambda row: row["at_most"])


def _row(best: Setting, quantity: str, bound: float, of_all: bool) -> dict[str, Any]:
    told = {"at_most": bound, "best_of_all": of_all, "group": " ".join(best.group), "bound": best.bound, **best.means}
    return {**told, f"{quantity}_half": best.halves[quantity], "seeds": best.seeds, "command": best.command}
