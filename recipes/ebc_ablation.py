"""What Ellipsotope-Budgeted Clipping is worth: optimizers, constraints, budgets, δ and learning rates, run by run.

    python -m recipes.ebc_ablation --data synthetic            # seconds: a toy GPT on a small language
    python -m recipes.ebc_ablation --data shakespeare          # the grid of all settings given
    python -m recipes.ebc_ablation --data shakespeare --auto   # finds learning rates and δ itself

`--auto` is the published protocol: the learning rate of least loss without EBC; for each budget the δ that clips a
given fraction of its steps; then multiples of that learning rate, with and without EBC, over all seeds. A run that is
in the folder already is not run again, so an ablation that was stopped goes on where it was.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from lipzoo.cli.train import guarded
from lipzoo.constraints import ConstraintName
from lipzoo.data import TextConfig
from lipzoo.models import GPTConfig
from lipzoo.optim import EBCConfig, OptimizerConfig
from lipzoo.optim.ebc.config import Aggregate
from lipzoo.optim.ebc.control import SurrogateConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig
from lipzoo.sweep.ablation import Row, Runner, compiled_quickly, run_name, unclipped_deltas, write_rows
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import program

Source = Literal["synthetic", "shakespeare"]
Schedule = Literal["constant", "lr"]
PRINTED = ("optimizer", "ebc", "spectral", "final_loss", "final_acc", "ebc_c")
SWEEP = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the given learning rate that --auto tries; it goes on beyond the ends while the loss falls."""
CALIBRATIONS = 8
FLAGS = {
    **{"width": "d-embed", "depth": "num-blocks", "heads": "num-heads", "seed": "seeds"},
    **{"lr": "adam-lr, --muon-lr or --lr-scales", "ebc.target-kl": "deltas", "ebc.update-every": "update-every"},
    **{"constraint": "constraints", "optimizer": "optimizers", "ebc.refine": "refine"},
}
"""What flags of a recipe are called here."""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The grid. Every combination of the lists is a run."""

    data: Source = "synthetic"
    """A small language drawn from a seed, or tiny Shakespeare; a character GPT learns either."""
    steps: int = 300
    """Optimizer steps of a run."""
    batch_size: int = 16
    """Windows a step."""
    seq_len: int = 64
    """Characters of a window."""
    num_blocks: int = 3
    """Blocks of the GPT."""
    d_embed: int = 128
    """Width of the GPT."""
    num_heads: int = 4
    """Attention heads of a block."""
    optimizers: tuple[Literal["adam", "muon"], ...] = ("adam",)
    """Optimizers."""
    constraints: tuple[ConstraintName, ...] = ("none",)
    """Spectral constraints."""
    ebc: tuple[Literal["off", "on"], ...] = ("off", "on")
    """Without and with EBC."""
    deltas: tuple[float, ...] = (0.03,)
    """Targets δ in nats per token; --auto begins its search at the first."""
    aggregates: tuple[Aggregate, ...] = ("l1", "exact")
    """How the budget is made."""
    schedules: tuple[Schedule, ...] = ("constant",)
    """What δ follows."""
    lr_scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    """Multiples of the base learning rate."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and batches."""
    adam_lr: float = 0.016
    """Base learning rate of Adam; --auto begins its search here."""
    muon_lr: float = 0.5
    """Base learning rate of Muon; --auto begins its search here."""
    sigma_max: float = 2.0
    """Cap of the constraints."""
    update_every: int = 20
    """Steps between EBC's measurements."""
    calibrate: bool = False
    """Correct the budget by what steps really did."""
    refine: int = 1
    """How often a step of the exact budget corrects c by the divergence that it really causes."""
    auto: bool = False
    """Find learning rates and δ, then run their multiples over all seeds."""
    clip_band: tuple[float, float] = (0.1, 0.3)
    """Fraction of clipped steps at the best learning rate that --auto brings δ to."""
    status: bool = False
    """Say which runs are done, and run nothing."""
    out: UserPath | None = None
    """Folder of the runs; by default one for these shapes under runs/ebc_ablation."""

    def folder(self) -> Path:
        """Where results lie."""
        shape = f"{self.num_blocks}x{self.d_embed}-{self.batch_size}x{self.seq_len}-{self.steps}"
        return self.out or Path("runs/ebc_ablation") / (shape if self.data == "shakespeare" else f"{self.data}-{shape}")

    def refusal(self) -> str | None:
        """Why there is no such ablation, or None."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == ():
                return f"--{field.name.replace('_', '-')} needs at least one value"
        if not 0 < self.clip_band[0] < self.clip_band[1] < 1:
            return f"--clip-band needs two fractions in rising order, got {self.clip_band}"
        return None


DEFAULTS: dict[Source, Ablation] = {
    "shakespeare": Ablation(data="shakespeare"),
    "synthetic": Ablation(
        data="synthetic",
        steps=100,
        seq_len=32,
        num_blocks=1,
        d_embed=32,
        num_heads=2,
        optimizers=("adam", "muon"),
        constraints=("none", "soft-cap"),
        aggregates=("exact",),
        lr_scales=(1.0,),
        seeds=(0,),
        adam_lr=0.04,
        muon_lr=0.5,
    ),
}


class Setting(NamedTuple):
    """What tells one run of an ablation from another."""

    optimizer: str
    constraint: ConstraintName
    aggregate: Aggregate | None
    schedule: Schedule
    delta: float
    lr: float
    seed: int


def recipe_of(line: Ablation, setting: Setting) -> Recipe:
    """The recipe of one run."""
    gpt = GPTConfig(depth=line.num_blocks, width=line.d_embed, heads=line.num_heads)
    text = TextConfig(data=line.data, batch_size=line.batch_size, seq_len=line.seq_len)
    ebc = EBCConfig()
    if setting.aggregate is not None:
        ebc = EBCConfig(
            enable=True,
            target_kl=setting.delta,
            target_schedule=setting.schedule,
            aggregate=setting.aggregate,
            update_every=line.update_every,
            surrogate=SurrogateConfig(enable=line.calibrate),
            refine=line.refine if setting.aggregate == "exact" else 0,
        )
    return Recipe(
        name="ebc_ablation",
        model=gpt,
        data=text,
        optimizer=OptimizerConfig(optimizer="muon" if setting.optimizer == "muon" else "adamw", lr=setting.lr),
        constraint=ConstraintConfig(constraint=setting.constraint, sigma_max=line.sigma_max),
        training=TrainingConfig(steps=line.steps, seed=setting.seed),
        ebc=ebc,
    )


Budget = tuple[Aggregate | None, Schedule, float]


def budgets(line: Ablation, delta: float) -> list[Budget]:
    """Without EBC, and with each budget, at one δ."""
    off: list[Budget] = [(None, "constant", 0.0)] if "off" in line.ebc else []
    on: list[Budget] = [(a, s, delta) for a in line.aggregates for s in line.schedules] if "on" in line.ebc else []
    return off + on


def grid(line: Ablation) -> list[Setting]:
    """Every combination."""
    settings = []
    chosen = dict.fromkeys(budget for delta in line.deltas for budget in budgets(line, delta))
    for optimizer, scale, seed in itertools.product(line.optimizers, line.lr_scales, line.seeds):
        lr = scale * base_lr(line, optimizer)
        pairs = itertools.product(chosen, line.constraints)
        settings += [Setting(optimizer, constraint, *budget, lr=lr, seed=seed) for budget, constraint in pairs]
    return settings


def base_lr(line: Ablation, optimizer: str) -> float:
    return line.adam_lr if optimizer == "adam" else line.muon_lr


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


def ablate(argv: Sequence[str]) -> int:
    """Parses the command line, over the defaults of its data, and runs."""
    line = parse(argv)
    with compiled_quickly() if line.data == "synthetic" else contextlib.nullcontext():
        return _ablate(line)


def parse(argv: Sequence[str]) -> Ablation:
    """The ablation asked for. Raises UserError if there is none."""
    source = tyro.cli(_Source, args=list(argv), add_help=False, return_unknown_args=True, console_outputs=False)[0].data
    line = tyro.cli(Ablation, args=list(argv), default=DEFAULTS[source], prog=program(), description=__doc__)
    if refusal := line.refusal():
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


if __name__ == "__main__":
    sys.exit(guarded(lambda: ablate(sys.argv[1:])))
