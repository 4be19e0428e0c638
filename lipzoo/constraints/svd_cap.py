"""Exact cap by singular value decomposition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.constraints.base import Cap, Constraint, Step, aim, normalize

LARGEST_EXCESS = 1000.0
SQUARINGS = 16
"""An excess of at most 0.003% at 768; beside an SVD they cost little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SvdCap(Constraint):
    """σ ↦ min(σ, σ_max) by SVD in float32, at any learning rate: exact, slow, and the yardstick of the other caps.

    The excess over the cap is subtracted, so that small singular values are not rounded; a matrix above 1000 caps is
    first divided down to that, or the subtraction would cancel. The rounding of an SVD has no constant that one could
    prove, so the cut is a little below the cap (`aim`: 0.003% at 24×24, 0.3% at 768×768), and what an upper bound of
    the norm still finds above the cap is divided by.
    """

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        matrix = normalize(matrix, cap=LARGEST_EXCESS * cap)
        u, sigma, vt = decomposed(matrix)
        rounding = 32 * float(jnp.finfo(matrix.dtype).eps) * jnp.maximum(sigma[..., :1], cap)
        excess = jnp.maximum(sigma - (aim(cap, matrix, SQUARINGS) - rounding), 0)
        cut = matrix - jnp.matmul(u * excess[..., None, :], vt, precision="highest")
        return normalize(cut, cap=cap, squarings=SQUARINGS)


def decomposed(matrix: Float[Array, "*batch out in"]) -> tuple[Array, Array, Array]:
    """U, σ and Vᵀ of each matrix, on a CPU one after the other.

    XLA's CPU backend deals a batch out to its threads, and waits; where all of its threads wait so, each with a batch
    of its own, it waits for ever.
    """
    one = functools.partial(jnp.linalg.svd, full_matrices=False)
    if matrix.ndim == 2 or jax.default_backend() != "cpu":
        return tuple(one(matrix))
    parts = jax.lax.map(lambda x: tuple(one(x)), matrix.reshape(-1, *matrix.shape[-2:]))
    u, sigma, vt = (part.reshape(*matrix.shape[:-2], *part.shape[1:]) for part in parts)
    return u, sigma, vt
