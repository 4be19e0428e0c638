"""Constraints on singular values: one idea a file, each a pure map matrix → matrix."""

from typing import TYPE_CHECKING, Literal

from lipzoo.constraints.base import Constraint as Constraint
from lipzoo.constraints.base import Step as Step
from lipzoo.constraints.free import Unconstrained as Unconstrained
from lipzoo.constraints.free import WeightDecay as WeightDecay
from lipzoo.constraints.hard_cap import HardCap as HardCap
from lipzoo.constraints.hard_cap import HardCapPoly as HardCapPoly
from lipzoo.constraints.normalize import SpectralNormalize as SpectralNormalize
from lipzoo.constraints.soft_cap import SoftCap as SoftCap
from lipzoo.constraints.stiefel import Stiefel as Stiefel
from lipzoo.constraints.svd_cap import SvdCap as SvdCap
from lipzoo.constraints.top_value import SpectralHammer as SpectralHammer
from lipzoo.constraints.top_value import SpectralWeightDecay as SpectralWeightDecay

CONSTRAINTS: dict[str, type[Constraint]] = {
    "none": Unconstrained,
    "weight-decay": WeightDecay,
    "spectral-weight-decay": SpectralWeightDecay,
    "spectral-normalize": SpectralNormalize,
    "stiefel": Stiefel,
    "spectral-hammer": SpectralHammer,
    "soft-cap": SoftCap,
    "hard-cap": HardCap,
    "hard-cap-poly": HardCapPoly,
    "svd-cap": SvdCap,
}

if TYPE_CHECKING:
    ConstraintName = str
else:
    ConstraintName = Literal[tuple(CONSTRAINTS)]
