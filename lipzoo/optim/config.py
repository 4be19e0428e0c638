"""Optimizers as optax chains, with the norm that one step can have."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import optax

from lipzoo.config.fields import options, taken
from lipzoo.config.overrides import number, override
from lipzoo.config.ranges import Fraction, NonNegative, Part, Positive, Range, Whole
from lipzoo.optim.base import Optimizer, Spread, Transform, add_decay, scale_by_share
from lipzoo.optim.hyper import Hyper, rounded_down
from lipzoo.optim.hyper import number as as_number
from lipzoo.optim.optimizers import OPTIMIZERS, OptimizerName
from lipzoo.optim.schedules import Factor, Schedule, schedule
from lipzoo.theory.msign import PolynomialName
from lipzoo.theory.weight import Tree, Weight, map_weights

LR_FLAG = "--lr-overrides"
BETAS = ("beta1", "beta2", "momentum_start", "embedding_beta1")
NUMBERS = ("lr", "lr_overrides", "weight_decay", *BETAS)
"""Settings in which runs of one compiled step may differ."""
Beta = Annotated[float, Range(0, 0.99999)]
"""Beyond its upper end 1 - β loses its digits in float32."""


@options
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The part of a recipe that describes the optimizer."""

    optimizer: OptimizerName = "muon"
    """muon: orthogonalized momentum, whose step has a known norm; adamw: Adam without bias correction."""
    lr: Positive = 0.1
    """Peak learning rate. Muon's step moves a layer by lr × its share in RMS→RMS norm."""
    lr_overrides: tuple[str, ...] = ()
    """LAYER=RATE pairs: learning rates of single layers, instead of --lr times their share; LAYER may be a pattern."""
    beta1: Beta = 0.9
    """Momentum."""
    momentum_start: Beta = 0.85
    """Momentum of muon's first step where there is a --momentum-warmup."""
    momentum_warmup: Whole = 0
    """Steps over which muon's momentum rises linearly from --momentum-start to --beta1."""
    embedding_adam: bool = False
    """Move the embedding by Adam, under muon for all others."""
    embedding_beta1: Beta = 0.8
    """Momentum of the embedding's Adam."""
    beta2: Beta = 0.95
    """Second-moment decay of AdamW."""
    weight_decay: NonNegative = 0.0
    """λ: each step multiplies a weight by 1 - λ·lr·share first."""
    nesterov: bool = False
    """Nesterov momentum, for muon."""
    polynomial: PolynomialName = "six-row"
    """Orthogonalizing polynomial of muon; turbo balances the rows first and takes a round less than polar-express."""
    msign_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of muon's orthogonalization."""
    embed_inflation: Annotated[float, Range(1)] = 16.0
    """Largest factor by which muon enlarges the momentum of a rare token's embedding."""
    schedule: Schedule = "linear"
    """Shape of the learning rate over the steps."""
    warmup_steps: Whole = 0
    """Steps over which the learning rate first rises linearly."""
    cooldown: Part = 0.4
    """Fraction of the steps, at the end, over which the trapezoid falls."""
    cooldown_floor: Fraction = 0.1
    """Fraction of the peak to which the trapezoid falls."""
    peak_at: Fraction = 0.4
    """Fraction of the steps over which the triangle rises."""

    def make(self) -> Optimizer:
        """The optimizer of this name, with the options that it takes."""
        kind = OPTIMIZERS[self.optimizer]
        return kind(**taken(kind, self))

    def update_sup(self, weight: Weight) -> float:
        """The largest norm of a weight's update per unit of lr × share; infinite where it is not known."""
        return self.make().update_sup(weight)

    def shares(self, tree: Tree) -> Tree:
        """`tree` with the shares that make the learning rates of `lr_overrides`."""

        def share(weight: Weight) -> Weight:
            rate = override(self.lr_overrides, weight.name)
            return weight if rate is None else dataclasses.replace(weight, share=number(rate, LR_FLAG) / self.lr)

        return map_weights(share, tree)

    def structure(self) -> "OptimizerConfig":
        """This without what a compiled step takes from its `Hyper`; of the decay, whether there is one at all."""
        like = OptimizerConfig(weight_decay=float(self.weight_decay > 0))
        return dataclasses.replace(self, **{name: getattr(like, name) for name in NUMBERS})

    def hyper(
        self,
        shares: Mapping[str, float],
        caps: Mapping[str, float] | None = None,
        *,
        temperature: float = 1.0,
        margin: float = 0.0,
        smoothing: float = 0.0,
        annealing: float = 0.0,
        target_kl: float = 1.0,
        ema: float = 0.0,
    ) -> Hyper:
        """What a compiled step takes as arguments, for weights of these shares and caps (by default without caps)."""
        numbers = {name: getattr(self, name) for name in ("lr", *BETAS)}
        numbers |= {"decay": self.weight_decay, "temperature": temperature, "margin": margin}
        numbers |= {"smoothing": smoothing, "annealing": annealing, "target_kl": target_kl, "ema": ema}
        return Hyper(
            **{name: as_number(value) for name, value in numbers.items()},
            caps={name: rounded_down(math.inf if caps is None else caps[name]) for name in shares},
            shares={name: as_number(share) for name, share in shares.items()},
        )

    def conflict(self, steps: int) -> str | None:
        """Which settings do not go together, or None."""
        if self.schedule != "triangular" and self.warmup_steps >= steps:
            return f"--warmup-steps must be below --steps {steps}, got {self.warmup_steps}"
        if self.polynomial in ("polar-express", "turbo") and self.msign_dtype == "bfloat16":
            return f"--polynomial {self.polynomial} diverges in bfloat16: choose another, or --msign-dtype float32"
        for name in ("nesterov", "momentum_warmup", "embedding_adam"):
            if getattr(self, name) and name not in taken(OPTIMIZERS[self.optimizer], self):
                return f"--{name.replace('_', '-')} is for --optimizer {takers(name)}"
        if self.lr_overrides and not self.make().modular:
            return f"{LR_FLAG} is for --optimizer {' or '.join(n for n, kind in OPTIMIZERS.items() if kind.modular)}"
        return None

    def build(
        self,
        clip: Transform | None = None,
        spread: Spread = lambda function: function,
    ) -> Transform:
        """gradients → updates for a learning rate of -1: modular ones are share-scaled, and so is the decay of all.

        `clip` comes between the optimizer and the decay. Arguments beyond optax's three are for it.
        """
        optimizer = self.make()
        parts = [optimizer.transform(spread)]
        parts += [scale_by_share()] if optimizer.modular else []
        parts += [] if clip is None else [clip]
        parts += [add_decay()] if self.weight_decay else []
        return optax.chain(*parts)

    def factor(self, steps: int) -> Factor:
        """The learning rate as a fraction of its peak."""
        return schedule(self.schedule, steps, self.warmup_steps, self.cooldown, self.cooldown_floor, self.peak_at)


def takers(option: str) -> str:
    """The names of the optimizers that take this option."""
    fields = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in OPTIMIZERS.items()}
    return " or ".join(name for name, names in fields.items() if option in names)
