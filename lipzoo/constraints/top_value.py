"""Maps of the largest singular value alone: spectral hammer and spectral weight decay."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.constraints.base import Cap, Constraint, Step
from lipzoo.theory import norms


def _map_top(
    matrix: Float[Array, "*batch out in"], step: Step, function: Callable[[Array, Array], Array]
) -> Float[Array, "*batch out in"]:
    """`matrix` with σ₁ replaced by `function(c, σ₁/c)·c`, c ≥ 1 a power of two: norms may exceed the largest number."""
    _, unit, _ = norms.scaled(matrix)
    unit = jnp.maximum(unit, 1)
    x = matrix / unit[..., None, None]
    sigma, u, v = norms.estimate_top_singular(x, jax.random.key(0) if step.key is None else step.key)
    change = (function(unit, sigma) - sigma)[..., None, None]
    return unit[..., None, None] * (x + change * u[..., :, None] * v[..., None, :])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralHammer(Constraint):
    """σ₁ ↦ σ_max, whether it was above or below; the others stay.

    One singular value is set each step, found by power iteration, so nothing stops the others from growing past the
    cap together: no guarantee. Newhouse et al. 2025 (arXiv 2507.13338).
    """

    guarantees: ClassVar[bool] = False

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        return _map_top(matrix, step, lambda unit, sigma: cap / unit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralWeightDecay(Constraint):
    """σ₁ ↦ (1 - rate)σ₁ after every step: weight decay on the largest singular value alone; no guarantee.

    The direction comes from power iteration. Newhouse et al. 2025 (arXiv 2507.13338), where the rate is not scaled by
    the learning rate either.
    """

    rate: float = dataclasses.field(default=0.1, metadata={"option": "spectral_wd"})
    caps: ClassVar[bool] = False
    guarantees: ClassVar[bool] = False

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        return _map_top(matrix, step, lambda unit, sigma: sigma * (1 - self.rate))
