"""The part of a recipe that describes how weights are held."""

import dataclasses

from lipzoo.config.fields import options, taken
from lipzoo.config.overrides import number, override
from lipzoo.config.ranges import Count, Fraction, NonNegative
from lipzoo.constraints import (
    CONSTRAINTS,
    Constraint,
    ConstraintName,
    SpectralNormalize,
    Unconstrained,
    WeightDecay,
)
from lipzoo.system.errors import UserError
from lipzoo.theory.precision import Precision
from lipzoo.theory.weight import Weight

CAP_FLAG = "--sigma-max-overrides"


@options
@dataclasses.dataclass(frozen=True)
class ConstraintConfig:
    """The part of a recipe that describes how weights are held."""

    constraint: ConstraintName = "soft-cap"
    """Map of singular values applied after every step."""
    sigma_max: float = 3.0
    """Cap on every weight's RMS→RMS norm."""
    embedding_cap: float = 1.0
    """Cap on the RMS norm of every token's embedding."""
    lipschitz: NonNegative = 0.0
    """Scale all caps but the embedding's so that the network is at most this Lipschitz (RMS → RMS), whatever training
    does: --sigma-max and --sigma-max-overrides then say how they compare; 0 takes them as they are."""
    constraint_overrides: tuple[str, ...] = ()
    """LAYER=CONSTRAINT pairs for single layers; LAYER may be a pattern, as in 'layers.*=svd-cap'."""
    sigma_max_overrides: tuple[str, ...] = ()
    """LAYER=CAP pairs for single layers."""
    spectral_wd: Fraction = 0.1
    """Fraction of the largest singular value that spectral-weight-decay takes off each step."""
    project_every: Count = 1
    """Apply the constraint every so many steps, so far below the cap that the steps between end under it too, which
    costs their norm. That needs steps of known norm (--optimizer muon)."""
    project_dtype: Precision = "float32"
    """Precision of the matrix products of soft-cap, stiefel and hard-cap-poly (the others keep to float32); for
    float8_e4m3fn weights are rounded to it, scaled by a power of two, and multiplied in bfloat16."""
    seal: bool = True
    """Cut back, in float64, what exceeds its cap by approximation or rounding when a checkpoint is written."""

    def make(self, name: str) -> Constraint:
        """The constraint of this name with the options that it takes."""
        if name not in CONSTRAINTS:
            raise UserError(f"there is no constraint {name!r}; choose from {', '.join(CONSTRAINTS)}")
        return CONSTRAINTS[name](**taken(CONSTRAINTS[name], self))

    def names(self) -> set[str]:
        """The constraints that are named for some weight."""
        return {self.constraint, *(pair.partition("=")[2] for pair in self.constraint_overrides)}

    def of(self, weight: Weight) -> Constraint:
        """The constraint of one weight.

        A bias, a gain, and each row of an embedding have one singular value, their norm; stiefel and spectral-hammer
        would never let it be small. So whatever caps holds these by spectral-normalize, and what does not leaves them
        free.
        """
        if not weight.geometry.bounded:
            return Unconstrained()
        constraint = self.make(override(self.constraint_overrides, weight.name) or self.constraint)
        if not weight.geometry.single or isinstance(constraint, WeightDecay):
            return constraint
        return SpectralNormalize() if constraint.caps else Unconstrained()

    def sigma_max_of(self, weight: Weight) -> float:
        """The cap asked for."""
        value = override(self.sigma_max_overrides, weight.name)
        default = self.embedding_cap if weight.place == "embedding" else self.sigma_max
        return default if value is None else number(value, CAP_FLAG)
