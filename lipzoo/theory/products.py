"""Products of matrices, how far they are from what is meant, and what can be proved from them."""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float

SPLIT = 128
"""The size from which on half of the products above the diagonal of a Gram matrix are worth leaving out."""


def gamma(terms: int, unit: float) -> float:
    """γ_n = nu/(1-nu): a sum of n products, in any order, fused or not, is off by at most γ_n times that of their
    absolute values (Higham 2002, section 3.1); infinite beyond 1/u terms, where there is no such bound."""
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else math.inf


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The format itself, or float32 if it has fewer bits."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def unit_roundoff(dtype: DTypeLike) -> float:
    """u: a rounding to this format multiplies by a factor between 1-u and 1+u."""
    return float(jnp.finfo(dtype).eps) / 2


def small_gram(matrix: Float[Array, "*batch m n"]) -> Float[Array, "*batch s s"]:
    """WWᵀ or WᵀW, whichever is smaller (s = min(m, n)); its eigenvalues are the squared singular values.

    The long side is cut in `_parts` whose products are added up, so that no sum has more than `gram_terms` roundings.
    In less than float32, where every addition would round the parts, it is one product. Of the corners off the diagonal
    one is computed; the other is the same.
    """
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    half = wide.shape[-2] // 2 if wide.shape[-2] >= SPLIT else 0
    lower = _in_parts(wide[..., half:, :], wide)
    if not half:
        return lower
    upper = jnp.concatenate([_in_parts(wide[..., :half, :], wide[..., :half, :]), lower[..., :half].mT], axis=-1)
    return jnp.concatenate([upper, lower], axis=-2)


def _in_parts(left: Float[Array, "*batch r n"], right: Float[Array, "*batch s n"]) -> Float[Array, "*batch r s"]:
    """The products of rows with rows."""
    size = left.shape[-1]
    parts = _parts(size) if left.dtype.itemsize >= 4 else 1
    edges = [size * part // parts for part in range(parts + 1)]
    products = (
        jnp.matmul(left[..., a:b], right[..., a:b].mT, precision="highest") for a, b in itertools.pairwise(edges)
    )
    return functools.reduce(jnp.add, products)


def _parts(size: int) -> int:
    """About √n/4: 6 of 768, 13 of 3072; products of short parts cost no more on CPU."""
    return max(math.isqrt(size) // 4, 1)


def gram_terms(shape: Sequence[int]) -> int:
    """n of the γ_n that bounds the rounding of an entry of `small_gram`, in whatever order its parts are summed up."""
    size = max(shape[-2:])
    return -(-size // _parts(size)) + _parts(size)


def identity_like(square: Float[Array, "*batch s s"]) -> Float[Array, "*batch s s"]:
    """The identity matrix, as many times as `square` has matrices."""
    return jnp.broadcast_to(jnp.eye(square.shape[-1], dtype=square.dtype), square.shape)


def is_under(matrix: Float[Array, "*batch m n"], limit: float | Float[Array, ""]) -> Bool[Array, "*batch"]:
    """True only where σ₁ ≤ `limit`, rounding included: where a Cholesky factorization of ℓI - WWᵀ succeeds.

    For limits whose squares are far from the ends of float32. It costs a fraction of `lipzoo.theory.norms.gram_norm`.

    Let Q be the computed Gram matrix, of side s, and n its `gram_terms`: WWᵀ ≼ Q + γ_n‖W‖_F²I. If the factorization R
    of a symmetric B runs to its end in floating point, |B - RᵀR| ≤ γ_(s+1)|R|ᵀ|R| (Higham 2002, theorem 10.3, in
    whatever order sums are taken), and ‖|R|ᵀ|R|‖ ≤ ‖R‖_F² = tr RᵀR. Hence B ≽ -γ' tr(B) I with γ' = γ_(s+8), which
    has room for roots and quotients that are off by a few units. With B = ℓI - Q, whose diagonal is rounded, WWᵀ ≼
    (ℓ + uℓ + γ' tr B + γ_n‖W‖_F²)I, and that is kept under limit². Traces are sums that are rounded: tr B is at most
    sℓ - tr Q, ‖W‖_F² at most tr Q, but for 1%. A NaN is under nothing.
    """
    square = small_gram(matrix.astype(at_least_float32(matrix.dtype)))
    size, unit = square.shape[-1], unit_roundoff(square.dtype)
    trace = jnp.trace(square, axis1=-2, axis2=-1)
    most = limit**2 * (1 - 1e-6)
    error = 1.01 * (gamma(gram_terms(matrix.shape), unit) * trace)
    error = error + 1.01 * gamma(size + 8, unit) * jnp.maximum(1.01 * size * most - 0.99 * trace, size * most * 0.01)
    level = (most - error)[..., None, None]
    factor = jax.lax.linalg.cholesky(level * identity_like(square) - square, symmetrize_input=False)
    return (level[..., 0, 0] > 0) & jnp.isfinite(factor).all(axis=(-2, -1))
