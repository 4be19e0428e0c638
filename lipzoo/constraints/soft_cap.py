"""Spectral soft cap, coupled to the size of the step."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo import norms
from lipzoo.constraints.base import Constraint, Step, hold, precision, target, wide_product

LARGEST_SHRINK = 19 / 81
"""1 - p(k)/k at αk² = 1/3, beyond which p is no longer monotone on [0, k]."""
MAX_ROUNDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftCap(Constraint):
    """σ ↦ p(σ) = u + αu³, u = σ - ασ³: barely changes small singular values and brings the largest under the cap.

    If ‖W‖ ≤ σ_max before a step with decay d and an update of norm ≤ η, then after it ‖W‖ ≤ k = σ_max(1-d) + η. With
    c = ασ², p(σ) = σ(1 - 3c² + 3c³ - c⁴), which rises on [0, k] exactly while αk² ≤ 1/3. So with the α that solves
    p(k) = σ_max, every singular value ends at or below σ_max. One round shrinks k by at most 62/81 (at αk² = 1/3), that
    is, absorbs η ≤ 0.306·σ_max; more rounds, each with its own α, absorb more. Up to eight rounds (η ≤ 7.4·σ_max) are
    admitted for an optimizer whose update norm is known beforehand.

    Newhouse et al. 2025 (arXiv 2507.13338), section 3; the rounds and the monotonicity limit are ours.
    """

    def __call__(
        self, matrix: Float[Array, "*batch out in"], *, cap: float, step: Step
    ) -> Float[Array, "*batch out in"]:
        goal = target(cap, matrix)
        # One norm for all matrices stays one number: devices that share them need not ask each other when to stop.
        norm = jnp.asarray(cap * (1 - step.decay) + step.update_norm, matrix.dtype)

        def unfinished(carry: tuple[Array, Array]) -> Array:
            return jnp.any((carry[1] > goal * (1 + 1e-6)) & jnp.isfinite(carry[1]))

        def one_round(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            matrix, norm = carry
            shrink = jnp.clip(1 - goal / norm, 0, LARGEST_SHRINK)
            alpha = jnp.broadcast_to(solve(shrink) / norm**2, matrix.shape[:-2])
            return soft_cap_round(matrix, alpha, self.project_dtype), norm * (1 - shrink)

        matrix, _ = jax.lax.while_loop(unfinished, one_round, (matrix, norm))
        return hold(matrix, cap=cap, dtype=self.project_dtype)

    def refusal(self, cap: float, update_norm: float) -> str | None:
        largest = cap * ((1 - LARGEST_SHRINK) ** -MAX_ROUNDS - 1)
        if update_norm <= largest or update_norm == float("inf"):
            return None
        return f"soft-cap absorbs updates of norm up to {largest:.4g} at a cap of {cap:g}"


def solve(shrink: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The c in [0, 1/3] with 3c² - 3c³ + c⁴ = `shrink` in [0, 19/81], by Newton's method.

    The left side is increasing and convex on [0, 1/3] (its second derivative 6 - 18c + 12c² is ≥ 4/3 there), and Newton
    starts below the root, so it converges from above after the first step; six steps reach float32's resolution.
    """
    c = jnp.sqrt(shrink / 3)
    for _ in range(6):
        slope = c * (6 - 9 * c + 4 * c**2)
        error = c**2 * (3 - 3 * c + c**2) - shrink
        c = c - error / jnp.where(slope > 0, slope, 1)
    return jnp.clip(c, 0, 1 / 3)


def soft_cap_round(
    matrix: Float[Array, "*batch out in"], alpha: Float[Array, "*batch"], dtype: str
) -> Float[Array, "*batch out in"]:
    """p applied to the singular values: W - C²(3I - 3C + C²)W with C = α·WWᵀ, on the smaller side.

    Four products, two of them of small matrices. In low precision only the correction is rounded, not W.
    """
    low = matrix.astype(dtype)
    c = alpha[..., None, None].astype(dtype) * norms.small_gram(low).astype(dtype)
    square = jnp.matmul(c, c, precision=precision(c))
    identity = norms.identity_like(c)
    correction = jnp.matmul(square, 3 * identity - 3 * c + square, precision=precision(c))
    return matrix - wide_product(correction, low).astype(matrix.dtype)
