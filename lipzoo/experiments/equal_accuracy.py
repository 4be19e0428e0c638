"""Two equally accurate runs of a sweep, one under caps and one without: what attacks and proofs leave of each."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lipzoo.evaluate.evaluation import Evaluation
from lipzoo.evaluate.run import Effort, evaluate, write
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.pictures import Line, lines
from lipzoo.sweep.results import Row
from lipzoo.system.errors import UserError
from lipzoo.train.run import train

EPSILONS = tuple(round(x, 4) for x in np.linspace(0.1, 1.5, 8).tolist())


def compare(rows: Sequence[Row], folder: Path, effort: Effort) -> None:
    """Trains the two again, with checkpoints, attacks and certifies them, and draws `robustness.png`."""
    chosen = equally_accurate(rows)
    found = {name: _evaluated(row, folder / f"{name}-{row['key']}", effort) for name, row in chosen.items()}
    drawn = [line for color, (name, value) in enumerate(found.items()) for line in _lines(name, value, color)]
    title = "Under attack (—), certified around each (- -)"
    figure = lines(drawn, title, "ε (ℓ₂, pixels in [0, 1])", "accuracy", limits=(0.0, 0.65))
    figure.savefig(folder / "robustness.png", dpi=140, facecolor="white")
    for name, value in found.items():
        told = f"{value.clean:.1%} clean, L {value.certificate.lipschitz:.4g}"
        print(f"{name}: {told}; {chosen[name]['command']}")
    print(f"wrote {folder / 'robustness.png'}", file=sys.stderr)


def equally_accurate(rows: Sequence[Row]) -> dict[str, Row]:
    """Of each side the run whose accuracy is nearest to what both reach: the lesser of the two best ones.

    **Raises:** UserError if a side has no run that is done.
    """
    done = [row for row in rows if row["status"] == "done"]
    adamw = [row for row in done if row["optimizer"] == "adamw"]
    capped = [row for row in done if row["constraint"] == "soft-cap"]
    if not adamw or not capped:
        raise UserError("the sweep has no finished run of AdamW, or none of soft cap, to compare")
    level = min(max(row["val_accuracy"] for row in side) for side in (adamw, capped))
    nearest = [min(side, key=lambda row: abs(row["val_accuracy"] - level)) for side in (capped, adamw)]
    return dict(zip(("soft-cap", "adamw"), nearest, strict=True))


def _evaluated(row: Row, run: Path, effort: Effort) -> Evaluation:
    recipe = Recipe.from_json(json.loads(row["settings"]))
    if train(recipe, run, resume=(run / "recipe.json").exists(), finish=lambda *_: None):
        raise UserError(f"{row['command']} has not ended well: see above")
    value = evaluate(run, EPSILONS, effort)
    write(value, run)
    return value


def _lines(name: str, value: Evaluation, color: int) -> list[Line]:
    x = np.array([0.0, *EPSILONS])
    first = float(value.radii.correct[: value.count].mean())
    attacked, around = value.attacked_accuracy or [], value.beyond(value.best) or []
    return [Line(name, x, [first, *attacked], color), Line("", x, [first, *around], color, "--")]
