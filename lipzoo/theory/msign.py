"""Matrix sign by polynomials: msign(M) = UVᵀ for M = UΣVᵀ, with matrix products only.

A row (a, b, c) is the odd polynomial ax + bx³ + cx⁵; a table of rows is applied one after the other to M/‖M‖_F, whose
singular values lie in [0, 1]. Small singular values are pushed towards one, none above the `sup` of the table, which is
computed here from the rows and is what a certificate of an optimizer's step rests on.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from lipzoo.theory.norms import gram_norm, repeat, scaled
from lipzoo.theory.products import at_least_float32, identity_like, small_gram

Row = tuple[float, float, float]
Polynomial = tuple[Row, ...]
PolynomialName = Literal["six-row", "dion", "classic", "polar-express", "turbo"]

SIX_ROW: Polynomial = tuple(
    (a / 1024, b / 1024, c / 1024)
    for a, b, c in (
        (3955, -8306, 5008),
        (3735, -6681, 3463),
        (3799, -6499, 3211),
        (4019, -6385, 2906),
        (2677, -3029, 1162),
        (2172, -1833, 682),
    )
)
DION: Polynomial = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
CLASSIC: Polynomial = ((3.4445, -4.7750, 2.0315),) * 5


def image(rows: Polynomial, low: float, high: float) -> tuple[float, float]:
    """The exact image of [low, high] under the composed rows.

    A continuous function maps an interval onto an interval, whose ends are values at the ends or at critical points of
    a single quintic; so composing images row by row loses nothing.
    """
    for a, b, c in rows:
        critical = np.roots([5 * c, 0, 3 * b, 0, a])
        inside = [x.real for x in critical if abs(x.imag) < 1e-9 and low < x.real < high]
        values = [a * x + b * x**3 + c * x**5 for x in (low, high, *inside)]
        low, high = min(values), max(values)
    return low, high


def sup(rows: Polynomial) -> float:
    """The largest singular value that the table can return for singular values in [0, 1]."""
    low, high = image(rows, 0.0, 1.0)
    return float(max(-low, high))


def _minimax_quintic(low: float, high: float) -> Row:
    """The odd quintic closest to 1 on [low, high]: it equioscillates on four points, found by Remez exchange."""
    a = b = c = 0.0
    inner = np.array([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high])
    for _ in range(100):
        points = np.array([low, *inner, high])
        columns = [points, points**3, points**5, [1, -1, 1, -1]]
        a, b, c, _ = np.linalg.solve(np.stack(columns, axis=1), np.ones(4))
        root = np.sqrt(9 * b * b - 20 * a * c)
        previous, inner = inner, np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
        if np.abs(inner - previous).max() < 1e-14:
            break
    return float(a), float(b), float(c)


@functools.cache
def polar_express(rounds: int, low: float = 1e-3) -> Polynomial:
    """Polar Express (Amsel et al. 2025, arXiv 2505.16932): each row is the best quintic for what the last one left.

    After each row the singular values of [low, 1] lie in [1-E, 1+E]. Once E is too small for Remez to resolve, the
    limit (15/8, -10/8, 3/8) follows. All rows but the last are evaluated at x/1.01, so that rounding above 1 is
    contracted.
    """
    rows: list[Row] = []
    high = 1.0
    for index in range(rounds):
        a, b, c = _minimax_quintic(low, high) if low < 0.99 * high else (1.875, -1.25, 0.375)
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
        safety = 1.01 if index < rounds - 1 else 1.0
        rows.append((a / safety, b / safety**3, c / safety**5))
    return tuple(rows)


POLYNOMIALS: dict[PolynomialName, Polynomial] = {
    "six-row": SIX_ROW,
    "dion": DION,
    "classic": CLASSIC,
    "polar-express": polar_express(4, 1e-2),
    "turbo": polar_express(3, 0.03),
}
BALANCED = {POLYNOMIALS["turbo"]}
"""Tables that are applied to a matrix with balanced rows (see `balance`), with a round less."""


ROUNDING_MARGIN = 1e-2
"""How far above `sup` the largest singular value of a `msign` may lie, relative.

No useful bound of what rounding does in these iterations can be proved: their slopes multiply up to a thousand.
Measured over Gaussian and ill-conditioned matrices (as in `tests/test_msign.py`) it lifts σ₁ by at most 4e-5 for every
table of `POLYNOMIALS` in float32. What is promised does not rest on that: an upper bound of the norm, rounding
included, is taken of the result, and what exceeds sup·(1 + ROUNDING_MARGIN) is divided by. The margin is what that
bound is too large by (0.3% to 0.9% for sides up to 768), so that it seldom acts.
"""
SQUARINGS = 9
"""Of that bound: an excess of 0.3% at 768."""


def msign(
    matrix: Float[Array, "*batch m n"], rows: Polynomial, dtype: DTypeLike = jnp.float32
) -> Float[Array, "*batch m n"]:
    """The polynomial `rows` applied to the singular values of M/‖M‖_F, and the result held under its supremum.

    **Returns:** a matrix of the input's dtype with singular values in [0, sup(rows)·(1 + ROUNDING_MARGIN)], at any
    scale of M; zero for zero, and for numbers that devices take for zero.
    """
    x = approximate(matrix, rows, dtype)
    # Rounding all entries of the quotient adds at most u√s to the norm, far below 1e-4.
    limit = sup(rows) * (1 + ROUNDING_MARGIN) * (1 - 1e-4)
    ratio = gram_norm(x, SQUARINGS) / limit
    return jnp.where(ratio[..., None, None] > 1, x / ratio.astype(x.dtype)[..., None, None], x)


def approximate(
    matrix: Float[Array, "*batch m n"], rows: Polynomial, dtype: DTypeLike = jnp.float32
) -> Float[Array, "*batch m n"]:
    """The polynomial `rows` applied to the singular values of M/‖M‖_F, up to rounding.

    The iteration runs on the smaller side in `dtype`, on M divided by a power of two that brings its largest entry to
    between 1 and 2, so that no square overflows or vanishes. In float32 and where it costs fewer operations (sides 1.5
    : 1 and longer, with six rows), it runs on the s×s Gram matrix: A = MMᵀ once, then Q = aI + bA + cA², P ← PQ, A ←
    AQ², and one product PM at the end. Squaring costs accuracy where singular values are below 2⁻¹⁰ of ‖M‖_F: measured
    on 256×3072 with singular values from 1 to 1e-6, the result deviates from float64 by at most 10% in spectral norm,
    all of it in those directions; on well-conditioned matrices by 1e-5. In bfloat16 the iteration is always the direct
    one.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return approximate(matrix.mT, rows, dtype).mT
    wide, _, _ = scaled(matrix.astype(at_least_float32(matrix.dtype)))
    x = wide.astype(dtype)
    aspect = x.shape[-1] / x.shape[-2]
    rounds = len(rows)
    balanced = rows in BALANCED
    if x.dtype.itemsize >= 4 and 4 * rounds - 3 + 2 * aspect < rounds * (2 * aspect + 1):
        gram = _product(x, x.mT)
        size = balance(gram) if balanced else 1 / _at_least_one(jnp.trace(gram, axis1=-2, axis2=-1))
        x = _product(gram_polynomial(size * gram * size.mT, rows) * size.mT, x)
    elif balanced:
        x = iterate((balance(small_gram(wide)) * wide).astype(dtype), rows)
    else:
        x = iterate(x / _at_least_one(jnp.sum(wide**2, axis=(-2, -1))).astype(dtype), rows)
    return x.astype(matrix.dtype)


def balance(gram: Float[Array, "*batch s s"]) -> Float[Array, "*batch s 1"]:
    """Factors dᵢ = (Σⱼ|Gᵢⱼ|)^(-½) for the rows of X with the Gram matrix G = XXᵀ, so that ‖DX‖ ≤ 1.

    D⁻² - G has non-negative entries on its diagonal that are at least the sums of the absolute values beside them, so
    it is positive semidefinite (Gershgorin), and DGD ≼ I: the almost orthogonal layers of Prach and Lampert (2022,
    arXiv 2208.03160). Rows that are nearly orthogonal come out with singular values near 1, where ‖X‖_F would divide
    them by √s, so fewer rounds do (Turbo-Muon, Boissin et al. 2025, arXiv 2512.04632). What is found is the sign of DM,
    and no longer that of M.
    """
    sums = jnp.sum(jnp.abs(gram), axis=-1, keepdims=True)
    return jnp.where(sums > 0, jax.lax.rsqrt(jnp.where(sums > 0, sums, 1)), 0)


def _at_least_one(square: Float[Array, "*batch"]) -> Float[Array, "*batch 1 1"]:
    """The Frobenius norm from its square; that of a scaled matrix is at least 1 unless it is zero."""
    return jnp.maximum(jnp.sqrt(square), 1)[..., None, None]


def iterate(x: Float[Array, "*b s n"], rows: Polynomial) -> Float[Array, "*b s n"]:
    """The polynomial `rows` applied to the singular values of X, for ‖X‖ ≤ 1 and s ≤ n, by products with X."""

    def one_row(x: Array, row: Array | np.ndarray) -> tuple[Array, None]:
        a, b, c = row
        gram = _product(x, x.mT)
        return a * x + _product(b * gram + c * _product(gram, gram), x), None

    return repeat(one_row, x, np.asarray(rows, x.dtype))[0]


def _product(left: Float[Array, "*b m k"], right: Float[Array, "*b k n"]) -> Float[Array, "*b m n"]:
    return jnp.matmul(left, right, precision="highest" if left.dtype.itemsize >= 4 else None)


def gram_polynomial(gram: Float[Array, "*b s s"], rows: Polynomial) -> Float[Array, "*b s s"]:
    """P(A) such that P(XXᵀ)X applies `rows` to the singular values of X, for ‖X‖ ≤ 1.

    Rounding can leave eigenvalues of A slightly negative, and the rows would amplify them without limit; so A is
    shifted by ε = 4 units in the last place. That evaluates P at σ̃ = √(σ² + ε) ≥ σ, hence P·σ ≤ P·σ̃ stays under the
    supremum, and singular values below √ε = 7e-4 (float32) come out smaller than the rows would make them. The rounding
    of later rows is measured, not bounded (see `ROUNDING_MARGIN`).
    """
    identity = identity_like(gram)
    gram = gram + 4 * jnp.finfo(gram.dtype).eps * identity

    def factor(gram: Array, row: Array | np.ndarray) -> Array:
        a, b, c = row
        return a * identity + b * gram + c * _product(gram, gram)

    def moved(gram: Array, step: Array) -> Array:
        return _product(_product(gram, step), step)

    def one_row(carry: tuple[Array, Array], row: Array | np.ndarray) -> tuple[tuple[Array, Array], None]:
        total, gram = carry
        step = factor(gram, row)
        return (_product(total, step), moved(gram, step)), None

    # The ends are outside, since they are short of a product or two.
    table = np.asarray(rows, gram.dtype)
    first = factor(gram, table[0])
    total, gram = repeat(one_row, (first, moved(gram, first)), table[1:-1])[0]
    return _product(total, factor(gram, table[-1]))
