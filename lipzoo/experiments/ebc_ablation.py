"""The command of an ablation of the trust region."""

import contextlib
import dataclasses
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tyro

from lipzoo.config.fields import field_refusal
from lipzoo.experiments.ebc_grid import Ablation, Source, grid, recipe_of
from lipzoo.experiments.ebc_protocol import PRINTED, Executor, Missing, protocol
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.ablation import Row, Runner, compiled_quickly, write_rows
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.terminal import program

FLAGS = {
    **{"width": "d-embed", "depth": "num-blocks", "heads": "num-heads", "seed": "seeds"},
    **{"lr": "adam-lr, --muon-lr or --lr-scales", "ebc.target-kl": "deltas", "ebc.update-every": "update-every"},
    **{"constraint": "constraints", "optimizer": "optimizers", "ebc.refine": "refine"},
}
"""What flags of a recipe are called here."""


def with_overheads(rows: Sequence[Row]) -> list[Row]:
    """Each row with the time of a step over that of runs without EBC, less one (by the medians of equal settings)."""

    def median(row: Row, ebc: str) -> float:
        same = [r["per_second"] for r in rows if (r["optimizer"], r["spectral"], r["ebc"]) == (*row_key(row), ebc)]
        return float(np.median(same)) if same else math.nan

    def row_key(row: Row) -> tuple[str, str]:
        return row["optimizer"], row["spectral"]

    return [{**row, "overhead": round(median(row, "off") / median(row, row["ebc"]) - 1, 4)} for row in rows]


def write_summary(folder: Path, rows: Sequence[Row]) -> None:
    """summary.csv, results.json, and the two pictures of all runs."""
    from lipzoo.report.ebc_plots import plot_headroom, plot_pareto

    rows = with_overheads(rows)
    write_rows(folder / "summary.csv", rows)
    write_text(folder / "results.json", json.dumps(rows, indent=1) + "\n")
    plot_pareto(folder / "pareto_ppl_vs_avgc.png", rows)
    plot_headroom(folder / "lr_headroom.png", [row for row in rows if row["stage"] in ("grid", "finals")])
    print(f"wrote summary.csv, results.json and pictures to {folder}", file=sys.stderr)


def ablate(argv: Sequence[str], defaults: Mapping[Source, Ablation], description: str | None) -> int:
    """Parses the command line, over the defaults of its data, and runs."""
    line = parse(argv, defaults, description)
    with compiled_quickly() if line.data == "synthetic" else contextlib.nullcontext():
        return _ablate(line)


def parse(argv: Sequence[str], defaults: Mapping[Source, Ablation], description: str | None) -> Ablation:
    """The ablation asked for. Raises UserError if there is none."""
    source = tyro.cli(_Source, args=list(argv), add_help=False, return_unknown_args=True, console_outputs=False)[0].data
    line = tyro.cli(Ablation, args=list(argv), default=defaults[source], prog=program(), description=description)
    if refusal := field_refusal(line) or line.conflict():
        raise UserError(refusal)
    return line


def _ablate(line: Ablation) -> int:
    recipes = [recipe_of(line, setting) for setting in grid(line)]
    for recipe in recipes:
        _check(recipe)  # Before data are needed, and before the first run.
    if not line.status:
        line.folder().mkdir(parents=True, exist_ok=True)
    like = recipes[0].complete()
    execute = Executor(line, Runner(like, like.data.load(0), line.folder()))
    if line.data == "synthetic" and not line.status:
        print(",".join(PRINTED))
    try:
        rows = protocol(line, execute) if line.auto else execute.run("grid", grid(line))
    except Missing:
        return 0
    if not line.status:
        write_summary(line.folder(), rows)
    return 0


def _check(recipe: Recipe) -> None:
    """Raises UserError, in the flags of this command, if a run of the ablation cannot be done."""
    try:
        recipe.check()
    except UserError as error:
        named = lambda match: f"--{FLAGS.get(match[1], match[1])}"  # noqa: E731
        raise UserError(re.sub(r"--([a-z][\w.-]*\w)", named, str(error))) from error


@dataclasses.dataclass(frozen=True)
class _Source:
    data: Source = "synthetic"
