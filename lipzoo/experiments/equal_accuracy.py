"""Two equally accurate runs of a sweep, one under caps and one without: what attacks and proofs leave of each."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipzoo.report.pictures import Line, lines
from lipzoo.sweep.results import Row
from lipzoo.system.errors import UserError
from lipzoo.system.files import read_json

EPSILONS = tuple(f"{epsilon:.4g}" for epsilon in np.linspace(0.1, 1.5, 8))


def compare(rows: Sequence[Row], folder: Path, images: int) -> None:
    """Trains the two again, with checkpoints, attacks and certifies so many images, and draws `robustness.png`.

    In processes of their own, which take accelerators where there are any: this one plans on a CPU.
    """
    chosen = equally_accurate(rows)
    found = {name: _evaluated(row, folder / f"{name}-{row['key']}", images) for name, row in chosen.items()}
    drawn = [line for color, (name, value) in enumerate(found.items()) for line in _lines(name, value, color)]
    title = "Under attack (—), certified around each (- -)"
    figure = lines(drawn, title, "ε (ℓ₂, pixels in [0, 1])", "accuracy", limits=(0.0, 0.65))
    figure.savefig(folder / "robustness.png", dpi=140, facecolor="white")
    for name, value in found.items():
        told = f"{value['clean_accuracy']:.1%} clean, L {value['lipschitz_rms']:.4g}"
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


def _evaluated(row: Row, run: Path, images: int) -> dict[str, Any]:
    """evaluation.json of a row's run, which is trained, or gone on with, first."""
    train = shlex.split(row["command"])
    where = ["--resume" if (run / "recipe.json").exists() else "--run-dir", str(run)]
    _call([*train[1:3], *where] if where[0] == "--resume" else [*train[1:], *where])
    _call(["-m", "lipzoo.evaluate", str(run), "--images", str(images), "--no-tightness", "--epsilons", *EPSILONS])
    return read_json(run / "evaluation.json")


def _call(words: Sequence[str]) -> None:
    """Runs a module with this Python. Raises UserError if it does not end well; what it says is shown."""
    if status := subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"python {shlex.join(words)} ended with status {status}: see above")


def _lines(name: str, value: dict[str, Any], color: int) -> list[Line]:
    x, first = [0.0, *value["epsilons_l2"]], value["clean_accuracy_of_first"]
    attacked, around = value["attacked_accuracy"], value["local_certified_accuracy_of_first"]
    return [Line(name, x, [first, *attacked], color), Line("", x, [first, *around], color, "--")]
