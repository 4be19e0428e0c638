"""Products of matrices, and how far they are from what is meant."""

import functools
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

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
