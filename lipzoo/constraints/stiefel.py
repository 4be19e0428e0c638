"""Stiefel projection."""

import dataclasses

from jaxtyping import Array, Float

from lipzoo import msign
from lipzoo.constraints.base import Constraint, Step, hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stiefel(Constraint):
    """σ ↦ σ_max for every nonzero singular value, approximately and never above, at any learning rate.

    The six-row polynomial has its supremum at 0.99933 < 1 on [0, 1], which leaves room for float32 rounding.
    """

    def __call__(
        self, matrix: Float[Array, "*batch out in"], *, cap: float, step: Step
    ) -> Float[Array, "*batch out in"]:
        result = cap * msign.msign(matrix, msign.SIX_ROW, self.project_dtype)
        return hold(result, cap=cap, dtype=self.project_dtype)
