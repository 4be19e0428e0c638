"""How seldom a weight's constraint is applied (`lipzoo.constraints.base.lowered` says why its cap holds in between)."""

import math

from lipzoo.config.overrides import number, override
from lipzoo.constraints import WeightDecay
from lipzoo.constraints.base import lowered
from lipzoo.optim.config import LR_FLAG, OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.theory.weight import Weight


def is_lazy(config: ConstraintConfig, optimizer: OptimizerConfig, weight: Weight) -> bool:
    """Whether a constraint may be left out for some steps: if it guarantees its cap, and steps have a known norm."""
    constraint = config.of(weight)
    free = weight.geometry.single or isinstance(constraint, WeightDecay)  # These cost nothing.
    known = math.isfinite(optimizer.update_sup(weight))
    return constraint.caps and constraint.guarantees and known and not free


def every(config: ConstraintConfig, optimizer: OptimizerConfig, weight: Weight) -> int:
    """Every how many steps the constraint of a weight, which has its cap, is applied."""
    return config.project_every if is_lazy(config, optimizer, weight) and math.isfinite(weight.cap) else 1


def lowest(config: ConstraintConfig, optimizer: OptimizerConfig, weight: Weight, lr: float) -> float:
    """A cap that no step gives the constraint of a weight less than, where learning rates go up to `lr`."""
    count = every(config, optimizer, weight)
    moved = (count - 1) * _step(optimizer, weight, lr) if count > 1 else 0.0
    return float(lowered(weight.cap, moved, count, weight.array.shape))


def lazy_refusal(config: ConstraintConfig, optimizer: OptimizerConfig, found: list[Weight]) -> str | None:
    """Why constraints cannot be left out for so many steps, or None."""
    flag = f"--project-every {config.project_every}"
    lazy = [weight for weight in found if is_lazy(config, optimizer, weight)]
    if config.project_every > 1 and not lazy:
        return f"{flag} needs a --constraint that guarantees its cap, and --optimizer muon"
    for weight in lazy:
        if (config.project_every - 1) * _step(optimizer, weight, optimizer.lr) > config.sigma_max_of(weight) / 2:
            return f"{flag} would take more than half of the cap of {weight.name} for the steps between: lower it"
    return None


def _step(optimizer: OptimizerConfig, weight: Weight, lr: float) -> float:
    """The norm of an update at a learning rate."""
    given = override(optimizer.lr_overrides, weight.name)
    own = lr * weight.share if given is None else number(given, LR_FLAG)
    return own * optimizer.update_sup(weight)
