"""Spectral soft cap, coupled to the size of the step."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from lipzoo.constraints.base import (
    Cap,
    Constraint,
    Step,
    aim,
    brought_down,
    forming,
    normalize,
    precision,
    target,
    wide_product,
)
from lipzoo.theory import products
from lipzoo.theory.precision import rounded

LARGEST_SHRINK = 19 / 81
"""1 - p(k)/k at αk² = 1/3, beyond which p is no longer monotone on [0, k]."""
MAX_ROUNDS = 8
LARGEST_EXCESS = 1e6
"""Caps that a matrix is first divided down to, so that α = c/k² stays inside float32."""
LARGEST_LOSS = 0.5
"""The largest part of a round's shrink that may be lost to rounding; beyond it `normalize` has the last word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftCap(Constraint):
    """σ ↦ p(σ) = u + αu³, u = σ - ασ³: barely changes small singular values and brings the largest under the cap.

    If ‖W‖ ≤ σ_max before a step with decay d and an update of norm ≤ η, then after it ‖W‖ ≤ k = σ_max(1-d) + η. With
    c = αk², p(k) = k(1 - q(c)), q(c) = 3c² - 3c³ + c⁴, and p rises on [0, k] exactly while c ≤ 1/3. So with the c that
    solves p(k) = σ_max, every singular value ends at or below σ_max. One round shrinks k by at most 62/81 (at c = 1/3),
    that is, absorbs η ≤ 0.306·σ_max; more rounds, each with its own α, absorb more. Up to eight rounds (η ≤ 7.4·σ_max)
    are admitted for an optimizer whose update norm is known beforehand.

    **Rounding** is part of the bookkeeping, not of a margin: k is first enlarged by what it takes to form W (16
    roundings of all entries, each at most u√s of the norm, and as many of scalars); a round in float32 or float64 ends
    at or below k(1 - q(1-a) + b), where a and b bound its rounding (see `round_loss`: a is 0.14 for 768×768), with c
    what really was computed; and rounds go on until that is below the cap. So they aim lower by a·q, a small part of a
    small step. In lower precision, and beyond sides of about 1500, where a is above ½, `normalize` ends the map.

    Newhouse et al. 2025 (arXiv 2507.13338), section 3; the rounds and the monotonicity limit are ours.
    """

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        side, unit = math.sqrt(min(matrix.shape[-2:])), products.unit_roundoff(matrix.dtype)
        loss = round_loss(matrix.shape, self.project_dtype)
        proved = loss <= LARGEST_LOSS
        loss, offset = (loss, (2 * side + 8) * unit) if proved else (0.0, 0.0)
        goal = target(cap, matrix) if proved else aim(cap, matrix)
        # One norm for all matrices stays one number: devices that share them need not ask each other when to stop.
        norm = jnp.asarray(cap * (1 - step.decay) + step.update_norm, matrix.dtype)
        norm = norm * (1 + forming(matrix.shape, matrix.dtype))

        def unfinished(carry: tuple[Array, Array]) -> Array:
            return jnp.any((carry[1] > goal) & jnp.isfinite(carry[1]))

        def one_round(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            matrix, norm = carry
            shrink = (1 - goal * (1 - 1e-6) / norm + offset) / (1 - loss)
            c = solve(jnp.clip(shrink, 0, LARGEST_SHRINK))
            alpha = jnp.broadcast_to(c / norm**2, matrix.shape[:-2])
            absorbed = c**2 * (3 - 3 * c + c**2) * (1 - loss) - offset
            return soft_cap_round(matrix, alpha, self.project_dtype), norm * (1 - absorbed)

        matrix, _ = jax.lax.while_loop(unfinished, one_round, brought_down(matrix, norm, LARGEST_EXCESS * cap))
        return matrix if proved else normalize(matrix, cap=cap)

    def moves(self, shape: Sequence[int], cap: float, norm: float) -> float:
        """A round moves σ by σq(ασ²), which rises with σ, so that no value moves further than the largest, k, may.

        As it is computed it moves W by at most kq(1 + a) + bk, and k goes down by kq(1 - a) - bk (see `round_loss`, a,
        b). The k of all rounds go from `norm`, and 16 roundings more, to where the map ends, no lower than 10⁻⁵ below
        its goal. So they add up to ((k - goal)(1 + a) + 2nbk)/(1 - a) for n rounds, and b once more for each.
        """
        loss = round_loss(shape, self.project_dtype)
        if loss > LARGEST_LOSS or norm > LARGEST_EXCESS * cap:
            return math.inf
        side, unit = math.sqrt(min(shape[-2:])), products.unit_roundoff("float32")
        largest = norm * (1 + forming(shape))
        goal = cap * (1 - (4 * side + 16) * unit) * (1 - 1e-5)
        offset = (2 * side + 8) * unit
        absorbed = LARGEST_SHRINK * (1 - loss) - offset
        rounds = math.log(max(largest / goal, 1.0)) / -math.log1p(-absorbed) + 2
        rounding = rounds * offset * largest
        return (max(largest - goal, 0.0) * (1 + loss) + 3 * rounding) / (1 - loss)

    def refusal(self, cap: float, update_norm: float) -> str | None:
        largest = cap * ((1 - LARGEST_SHRINK) ** -MAX_ROUNDS - 1)
        if update_norm <= largest or update_norm == float("inf"):
            return None
        return f"soft-cap absorbs updates of norm up to {largest:.4g} at a cap of {cap:g}"


def round_loss(shape: Sequence[int], dtype: DTypeLike) -> float:
    """a such that, but for the last rounding of all entries, ‖computed round of W‖ ≤ k(1 - q(c)(1-a)) if ‖W‖ ≤ k.

    In units of k, and with u the roundoff of `dtype`, s the smaller side, n the terms of the Gram product: a product AB
    over n terms is off by at most γ_n‖A‖_F‖B‖_F, and ‖A‖_F ≤ √s‖A‖ for all matrices here. Hence

    - C = αWWᵀ is off by e·c, e = s·γ_(n+2), and its norm at most ĉ = c(1+e);
    - S = C² by sγ_s·ĉ², besides what it inherits, and its norm at most ŝ = ĉ²(1 + sγ_s);
    - M = 3I - 3C + S by γ_4(3 + √s(3ĉ + ŝ)); its norm is at most 3 and what it inherits;
    - the product K of S and M by γ_s√s·ŝ(‖M‖ + √s(3ĉ + ŝ)), where only the part of M beside 3I counts with √s;
    - what C's error does to q(C), a polynomial, by e·c(6ĉ + 9ĉ² + 4ĉ³);
    - the product KW by sγ_s‖K‖; α, and q as it is computed, add some u.

    Divided by q(c) = c²(3 - 3c + c²) each term rises with c, so c = 1/3 bounds them all. Infinite below float32.
    """
    if jnp.finfo(dtype).bits < 32:
        return math.inf
    u, size, side = products.unit_roundoff(dtype), min(shape[-2:]), math.sqrt(min(shape[-2:]))
    c, product = 1 / 3, products.gamma(size, u)
    error = size * products.gamma(products.gram_terms(shape) + 2, u)
    large = c * (1 + error)
    square = large**2 * (1 + size * product)
    middle = products.gamma(4, u) * (3 + side * (3 * large + square))
    factor = 3 + 5 * error * c + size * product * large**2 + middle
    correction = (
        error * c * (6 * large + 9 * large**2 + 4 * large**3)
        + size * product * large**2 * (factor + large**2)
        + large**2 * middle
        + product * side * square * (factor + side * (3 * large + square))
    ) / LARGEST_SHRINK
    return correction + size * product * (1 + correction) + 64 * u * (1 + side)


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
    low = rounded(matrix, dtype)
    c = alpha[..., None, None].astype(low.dtype) * products.small_gram(low)
    square = jnp.matmul(c, c, precision=precision(c))
    identity = products.identity_like(c)
    correction = jnp.matmul(square, 3 * identity - 3 * c + square, precision=precision(c))
    return matrix - wide_product(correction, low).astype(matrix.dtype)
