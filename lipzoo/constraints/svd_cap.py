"""Exact cap by singular value decomposition."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.constraints.base import Constraint, Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class SvdCap(Constraint):
    """σ ↦ min(σ, σ_max) by SVD in float32, at any learning rate: exact, slow, and the yardstick of the other caps."""

    def __call__(
        self, matrix: Float[Array, "*batch out in"], *, cap: float, step: Step
    ) -> Float[Array, "*batch out in"]:
        u, sigma, vt = jnp.linalg.svd(matrix, full_matrices=False)
        rounding = 32 * float(jnp.finfo(matrix.dtype).eps) * jnp.maximum(sigma[..., :1], cap)
        excess = jnp.maximum(sigma - (cap - rounding), 0)
        return matrix - jnp.matmul(u * excess[..., None, :], vt, precision="highest")
