"""No map at all: unconstrained weights, and weights held by decay."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Array, Float

from lipzoo.constraints.base import Cap, Constraint, Step, normalize, normalize_moves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unconstrained(Constraint):
    """W ↦ W. The a-priori bound is infinite; the certified bound says what the weights are."""

    caps: ClassVar[bool] = False
    guarantees: ClassVar[bool] = False

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        return matrix

    def moves(self, shape: Sequence[int], cap: float, norm: float) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightDecay(Constraint):
    """W ↦ W: the decay that is part of the optimizer's step does the work; what rounding adds to it is divided by.

    W ← (1 - λl)W - lU with ‖U‖ ≤ s keeps ‖W‖ ≤ s/λ if it held before, since (1 - λl)s/λ + ls = s/λ. So with an
    optimizer of bounded update norm (Muon), and a first norm below it, s/λ is a cap that holds, whatever the learning
    rate l ≤ 1/λ. With AdamW nothing is promised.

    Rounding adds up to a few u√s of the norm each step, which a decay of λl below that would not take off again. So
    where an upper bound of the norm (up to 1% too large) exceeds the cap, W is divided down to it.
    """

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        return normalize(matrix, cap=cap)

    def moves(self, shape: Sequence[int], cap: float, norm: float) -> float:
        return normalize_moves(shape, cap, norm)

    def cap(self, sigma_max: float, update_norm: float, decay: float) -> float:
        return max(1.0, update_norm / decay) * (1 + 1e-5)
