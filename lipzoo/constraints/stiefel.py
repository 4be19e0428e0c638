"""Stiefel projection."""

import dataclasses

from jaxtyping import Array, Float

from lipzoo.constraints.base import Cap, Constraint, Step, aim, normalize
from lipzoo.theory import msign, norms
from lipzoo.theory.precision import rounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stiefel(Constraint):
    """σ ↦ σ_max for every nonzero singular value, approximately and never above, at any learning rate.

    The six-row polynomial has its supremum at 0.99933 < 1 on [0, 1]; what rounding lifts above σ_max is divided by.
    """

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        low = rounded(norms.scaled(matrix)[0], self.project_dtype)
        sign = msign.approximate(low, msign.SIX_ROW, low.dtype).astype(matrix.dtype)
        return normalize(aim(cap, matrix) * sign, cap=cap)
