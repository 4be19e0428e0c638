"""What a sweep has found: the frontier of each group of settings against the certified bound, as a picture and a table.

    lipzoo frontier runs/sweep/cifar_mlp/results.parquet

Runs that differ in their seed alone are one setting; intervals are those of the mean over seeds at 95%, by Student's t.
A setting is on the frontier where no other of its group with a smaller bound is better. For each bound the table names
the best setting under it, and the command that trains it again.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import guarded, program


@dataclasses.dataclass(frozen=True)
class Line:
    """The command line."""

    results: Annotated[Positional[UserPath], tyro.conf.arg(metavar="RESULTS")]
    """results.parquet of a sweep (or results.csv, or the folder)."""
    by: tuple[str, ...] = ("optimizer", "constraint")
    """Columns that make a group: the last tells colors apart, those before it kinds of lines."""
    bounds: tuple[float, ...] = ()
    """Bounds of the table; by default 1, 2, 5 times powers of ten."""
    quantity: Literal["val_loss", "val_accuracy", "val_certified_accuracy"] = "val_loss"
    """Column by which the table's settings are best; val_accuracy and val_certified_accuracy are others."""
    out: UserPath | None = None
    """Folder of frontier.png and frontier.csv; by default where the results lie."""
    title: str = ""
    """Title of the picture."""


def _main(argv: Sequence[str]) -> int:
    line = tyro.cli(Line, args=list(argv), prog=program(), description=__doc__)
    from lipzoo.frontier.draw import draw_frontier  # matplotlib takes a second to import.

    draw_frontier(line.results, line.by, line.quantity, line.bounds, line.out, line.title)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: _main(sys.argv[1:])))
