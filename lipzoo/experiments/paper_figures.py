"""Figures 2, 3 and 4 of Newhouse et al. 2025 (arXiv 2507.13338) measured anew, under certified bounds.

2: what an MLP on CIFAR-10 reaches under each bound, for twelve pairs of optimizer and constraint. 3: what attacks leave
of two MLPs of equal accuracy, one held by soft cap and one of AdamW. 4: what a character GPT reaches under each bound.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Count, Whole
from lipzoo.sweep.axes import axes_of, grid
from lipzoo.sweep.drive import drive
from lipzoo.sweep.results import Results
from lipzoo.sweep.runs import Run, base_of, runs_of
from lipzoo.sweep.schedule import Platform
from lipzoo.system.errors import UserError
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import program

Words = Mapping[str, Sequence[str]]
CAPPED = ("spectral-normalize", "stiefel", "soft-cap", "hard-cap")


@dataclasses.dataclass(frozen=True)
class Grids:
    """Several grids of one recipe, with what they have in common."""

    recipe: str
    common: Words
    grids: tuple[Words, ...]

    def runs(self) -> list[Run]:
        """Their runs, each once."""
        base = base_of(self.recipe, None)
        settings = [one for words in self.grids for one in grid(axes_of(base.recipe, {**self.common, **words}))]
        return runs_of(base, settings)


def pairs(caps: Sequence[str], spectral: Sequence[str], rates: Words, decays: Words) -> tuple[Words, ...]:
    """Twelve pairs of optimizer and constraint: constraints with caps, which are varied, and two of which the strength
    is. Learning rates, and strengths of weight decay, are those of an optimizer."""
    return tuple(
        {"optimizer": [optimizer], "lr": rates[optimizer], **strength}
        for optimizer in rates
        for strength in (
            {"constraint": CAPPED, "sigma_max": caps},
            {"constraint": ["weight-decay"], "weight_decay": decays[optimizer]},
            {"constraint": ["spectral-weight-decay"], "spectral_wd": spectral},
        )
    )


PLAIN: Words = {"polynomial": ["six-row"], "temperature": ["1"], "random_flip": ["false"], "random_shift": ["0"]}
"""The published recipe of the MLP, whose loss is not sharpened."""
TOY: Words = {"steps": ["10"], "width": ["8"], "batch_size": ["64"]}
PAIR: tuple[Words, ...] = {"lr": ["0.1"]}, {"optimizer": ["adamw"], "constraint": ["none"], "lr": ["0.01"]}
MLP = {
    "tiny": Grids("digits_mlp", TOY, PAIR),
    "small": Grids(
        "cifar_mlp",
        {**PLAIN, "steps": ["500"]},
        pairs(
            ["1", "2", "4", "8"],
            ["0.01", "0.05", "0.2"],
            {"muon": ["0.03", "0.1", "0.3"], "adamw": ["0.001", "0.003", "0.01"]},
            {"muon": ["0.1", "0.3", "1"], "adamw": ["0.1", "1", "10"]},
        ),
    ),
    "full": Grids(
        "cifar_mlp",
        {**PLAIN, "steps": ["4882"], "seed": ["0", "1", "2"]},
        pairs(
            ["1", "1.5", "2", "3", "4", "6", "8"],
            ["log:0.001:0.3:6"],
            {"muon": ["log:0.01:1:7"], "adamw": ["log:0.0003:0.03:7"]},
            {"muon": ["log:0.03:1:6"], "adamw": ["log:0.1:10:6"]},
        ),
    ),
}


def two(caps: Sequence[str], muon: Sequence[str], adamw: Sequence[str]) -> tuple[Words, ...]:
    """Muon under soft cap, and AdamW with weight decay alone, as published."""
    return (
        {"optimizer": ["muon"], "constraint": ["soft-cap"], "sigma_max": caps, "lr": muon},
        {"optimizer": ["adamw"], "constraint": ["none"], "weight_decay": ["0.1"], "lr": adamw},
    )


ROBUST = {
    "tiny": Grids("digits_mlp", TOY, PAIR),
    "small": Grids(
        "cifar_mlp", {**PLAIN, "steps": ["1953"]}, two(["2", "3"], ["0.1", "0.23"], ["0.001", "0.003", "0.0081"])
    ),
    "full": Grids(
        "cifar_mlp", {**PLAIN, "steps": ["4882"]}, two(["2", "3", "4"], ["log:0.1:0.4:4"], ["log:0.001:0.01:5"])
    ),
}
HEADS = ["head=2", "head=5", "head=9.9", "head=30"]


def text(muon: Sequence[str], heads: Sequence[str], adamw: Sequence[str]) -> tuple[Words, ...]:
    """Muon under three constraints, of which the head has most of the bound; AdamW with weight decay."""
    capped = ["soft-cap", "hard-cap", "spectral-normalize"]
    free = {"optimizer": ["adamw"], "constraint": ["none"], "lr": adamw}
    return {"constraint": capped, "lr": muon, "sigma_max_overrides": heads}, {**free, "weight_decay": ["0", "0.1", "1"]}


GPT = {
    "tiny": Grids(
        "shakespeare_gpt",
        {**TOY, "data": ["pydoc"], "depth": ["2"], "heads": ["2"], "seq_len": ["16"], "accum_steps": ["1"]},
        PAIR,
    ),
    "small": Grids(
        "shakespeare_gpt",
        {"batch_size": ["16"], "accum_steps": ["4"], "steps": ["200"]},
        text(["0.5", "2"], HEADS, ["0.0005", "0.002"]),
    ),
    "full": Grids(
        "shakespeare_gpt",
        {"accum_steps": ["1"], "seed": ["0", "1", "2"]},
        text(["log:0.25:4:5"], [*HEADS, "head=100"], ["log:0.0003:0.005:5"]),
    ),
}
FIGURES = {"2": MLP, "3": ROBUST, "4": GPT}


@dataclasses.dataclass(frozen=True)
class Line:
    """The command line."""

    figure: Annotated[Positional[Literal["2", "3", "4"]], tyro.conf.arg(metavar="2|3|4")]
    """Which figure."""
    size: Literal["tiny", "small", "full"] = "small"
    """small: what two cores do overnight; full: the sizes of the paper, for a GPU; tiny: toys, to see that it runs."""
    steps: Whole = 0
    """Steps of every run; 0 for what --size says."""
    workers: Whole = 0
    """Processes, as of lipzoo sweep."""
    together: Whole = 0
    """Runs in one compiled step, as of lipzoo sweep."""
    images: Count = 500
    """Test images that figure 3 attacks."""
    out: UserPath | None = None
    """Folder; by default one under runs/paper_figures."""


def make(argv: Sequence[str]) -> int:
    """Runs what a figure needs and is not done yet, and draws it."""
    line = tyro.cli(Line, args=list(argv), prog=program(), description=__doc__)
    if refusal := field_refusal(line):
        raise UserError(refusal)
    platform = Platform()
    grids = FIGURES[line.figure][line.size]
    if line.steps:
        grids = dataclasses.replace(grids, common={**grids.common, "steps": [str(line.steps)]})
    steps = f"-{line.steps}" if line.steps else ""
    folder = line.out or Path(f"runs/paper_figures/{line.figure}-{line.size}{steps}")
    runs = grids.runs()
    status = drive(runs, folder, platform, workers=line.workers, together=line.together)
    if line.figure == "3":
        from lipzoo.experiments.equal_accuracy import compare

        rows = Results(folder).rows
        compare([rows[run.key] for run in runs if run.key in rows], folder, line.images)
    else:
        from lipzoo.frontier.draw import draw_frontier  # matplotlib takes a second to import.

        draw_frontier(folder, keys={run.key for run in runs})
    return status
