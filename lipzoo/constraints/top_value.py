"""Maps of the largest singular value alone: spectral hammer and spectral weight decay."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from lipzoo import norms
from lipzoo.constraints.base import Constraint, Step


def _shift_top(
    matrix: Float[Array, "*batch out in"], sigma: Array, new_sigma: Array, u: Array, v: Array
) -> Float[Array, "*batch out in"]:
    change = (new_sigma - sigma)[..., None, None]
    return matrix + change * u[..., :, None] * v[..., None, :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralHammer(Constraint):
    """σ₁ ↦ σ_max, whether it was above or below; the others stay.

    One singular value is set each step, found by power iteration, so nothing stops the others from growing past the
    cap together: no guarantee. Newhouse et al. 2025 (arXiv 2507.13338).
    """

    guarantees: ClassVar[bool] = False

    def __call__(
        self, matrix: Float[Array, "*batch out in"], *, cap: float, step: Step
    ) -> Float[Array, "*batch out in"]:
        key = jax.random.key(0) if step.key is None else step.key
        sigma, u, v = norms.estimate_top_singular(matrix, key)
        return _shift_top(matrix, sigma, 0 * sigma + cap, u, v)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralWeightDecay(Constraint):
    """σ₁ ↦ (1 - rate)σ₁ after every step: weight decay on the largest singular value alone; no guarantee.

    The direction comes from power iteration. Newhouse et al. 2025 (arXiv 2507.13338), where the rate is not scaled by
    the learning rate either.
    """

    rate: float = 0.1
    caps: ClassVar[bool] = False
    guarantees: ClassVar[bool] = False

    def __call__(
        self, matrix: Float[Array, "*batch out in"], *, cap: float, step: Step
    ) -> Float[Array, "*batch out in"]:
        key = jax.random.key(0) if step.key is None else step.key
        sigma, u, v = norms.estimate_top_singular(matrix, key)
        return _shift_top(matrix, sigma, sigma * (1 - self.rate), u, v)
