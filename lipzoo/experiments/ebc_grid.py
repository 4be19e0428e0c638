"""The grid of an ablation of the trust region: what its command line says, and the recipe of each of its runs."""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal, NamedTuple

from lipzoo.constraints import ConstraintName
from lipzoo.data import TextConfig
from lipzoo.models import GPTConfig
from lipzoo.optim import EBCConfig, OptimizerConfig
from lipzoo.optim.ebc.config import Aggregate
from lipzoo.optim.ebc.control import SurrogateConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig
from lipzoo.system.paths import UserPath

Source = Literal["synthetic", "shakespeare"]
Schedule = Literal["constant", "lr"]


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

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == ():
                return f"--{field.name.replace('_', '-')} needs at least one value"
        if not 0 < self.clip_band[0] < self.clip_band[1] < 1:
            return f"--clip-band needs two fractions in rising order, got {self.clip_band}"
        return None


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
