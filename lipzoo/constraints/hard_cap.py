"""Spectral hard cap: exact, by a matrix sign; and the published polynomial."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.constraints.base import (
    Cap,
    Constraint,
    Step,
    aim,
    brought_down,
    forming,
    normalize,
    precision,
    wide_product,
)
from lipzoo.theory import msign, products
from lipzoo.theory.precision import rounded

HARD_CAP_ROWS: msign.Polynomial = (
    (0.805032, 0.206361, -0.019763),
    (0.649867, 0.162935, -0.011150),
    (1.810259, -0.200265, 0.008251),
    (1.004384, -0.183490, 0.014413),
)
"""Approximates min(1, σ) on [0, 3]: off by up to 0.034, at most 1.0109, and divergent beyond 4."""

LARGEST_ARGUMENT = 3.1

SIGN_RESOLUTION = 1e-3
SIGN_ROWS = msign.polar_express(6, SIGN_RESOLUTION)
STAGE = 1.2
"""The largest excess that one application takes off, so that the inverse root is a short polynomial."""
ROOT = (0.9999967, -0.4996224, 0.36784666, -0.26266933, 0.11560421)
"""(1 + p)^(-½) for p from 0 to 1.2² - 1, off by at most 3.3e-6: Chebyshev's interpolant of degree 4."""
LARGEST_EXCESS = 1e3


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardCap(Constraint):
    """σ ↦ min(σ, σ_max), at any learning rate, from matrix products alone.

    With A = WWᵀ/β² on the smaller side, Z = A - I and S = msign(Z), P = ½(Z + SZ) is Z without its negative part, and
    (I + P)^(-½)W has the singular values σ·max(σ²/β², 1)^(-½) = min(σ, β). As in the soft cap, ‖W‖ is at most what cap,
    decay and step say, so Z's eigenvalues lie in [-1, 0.44] where that is at most 1.2 β; if it is more, the map is
    applied for levels that fall by 1.2. S is a Polar Express polynomial, the root one of degree 4, and W - (I - root)W
    is what is computed, so that only the small correction is rounded.

    Where |σ²/β² - 1| is within the resolution ε = 1e-3 of S, the computed sign lies anywhere in [-1, 1], and the result
    between β and β√(1 + ε); elsewhere it is off by at most 4e-3, and the result by a quarter of that times |σ²/β² -
    1|. Hence β = σ/(1 + ε) keeps it under σ.

    That is in exact arithmetic. So σ is σ_max less what an upper bound of the norm exceeds it by (`aim`: 0.2% to 1%).
    Whatever that bound finds above σ_max in the end, and whatever was said of the step, is divided by. Cesista and Su
    (2025) have the same from P = msign(W), which is ill-conditioned.
    """

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        goal = jnp.asarray(aim(cap, matrix) / (1 + SIGN_RESOLUTION), matrix.dtype)
        norm = jnp.asarray(cap * (1 - step.decay) + step.update_norm, matrix.dtype)
        norm = norm * (1 + forming(matrix.shape, matrix.dtype))

        def unfinished(carry: tuple[Array, Array]) -> Array:
            return jnp.any((carry[1] > goal) & jnp.isfinite(carry[1]))

        def one_stage(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            matrix, norm = carry
            level = jnp.maximum(goal, norm / STAGE)
            beta = jnp.broadcast_to(level, matrix.shape[:-2])[..., None, None]
            return cut(matrix, beta), jnp.where(level > goal, level * (1 + 2 * SIGN_RESOLUTION), goal)

        result, _ = jax.lax.while_loop(unfinished, one_stage, brought_down(matrix, norm, LARGEST_EXCESS * cap))
        # Where a step was larger than was said, S diverges.
        whole = jnp.isfinite(result).all(axis=(-2, -1), keepdims=True)
        return normalize(jnp.where(whole, result, matrix), cap=cap)


def cut(matrix: Float[Array, "*batch out in"], beta: Float[Array, "*batch 1 1"]) -> Float[Array, "*batch out in"]:
    """W with singular values min(σ, β), but for a relative error of a few 1e-3 near β, for ‖W‖ ≤ 1.2 β."""
    product = functools.partial(jnp.matmul, precision=precision(matrix))
    gap = products.small_gram(matrix / beta)
    identity = products.identity_like(gap)
    gap = gap - identity
    excess = (gap + product(msign.iterate(gap, SIGN_ROWS), gap)) / 2
    square = product(excess, excess)
    c0, c1, c2, c3, c4 = ROOT
    root = c0 * identity + c1 * excess + product(square, c2 * identity + c3 * excess + c4 * square)
    return matrix - wide_product(identity - root, matrix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardCapPoly(Constraint):
    """σ ↦ the published four-row approximation of min(σ, σ_max), for reproduction.

    Off by up to 3.4% of σ_max, up to 1.09% above it for σ ≤ 3σ_max, divergent beyond 4σ_max: no guarantee, and steps
    that could leave [0, 3σ_max] are refused. What lies beyond all the same is first divided down to 3.1σ_max. Newhouse
    et al. 2025 (arXiv 2507.13338), appendix.
    """

    guarantees: ClassVar[bool] = False

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        matrix = normalize(matrix, cap=LARGEST_ARGUMENT * cap)
        low = rounded(matrix / cap, self.project_dtype)
        polynomial = msign.gram_polynomial(products.small_gram(low), HARD_CAP_ROWS)
        return cap * wide_product(polynomial, low).astype(matrix.dtype)

    def refusal(self, cap: float, update_norm: float) -> str | None:
        if update_norm <= 1.98 * cap:
            return None
        if update_norm == float("inf"):
            return "hard-cap-poly diverges above three times its cap, and this optimizer's update norm is not bounded"
        return f"hard-cap-poly diverges above three times its cap of {cap:g}"
