"""Norms of weights: upper bounds for certificates, upper bounds inside jit, and estimates named as such.

A matrix W of shape (out, in) has the RMS→RMS norm ‖W‖ = σ₁(W)·√(in/out): the largest factor by which it can change the
RMS norm of a vector. Functions here take any number of leading batch axes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, PRNGKeyArray

from lipzoo.theory.products import at_least_float32, gamma, gram_terms, small_gram, unit_roundoff

GRAM_SQUARINGS = 10
"""Squarings of `gram_norm`: an excess of at most n^(1/4096), 0.17% at n = 768."""


def rms_factor(out_size: int, in_size: int) -> float:
    """√(in/out), which turns a spectral norm into an RMS→RMS norm."""
    return float(np.sqrt(in_size / out_size))


def spectral_norm(matrix: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
    """A rigorous upper bound of σ₁, by LAPACK's SVD in float64.

    The computed singular values are exact for a matrix within a relative 2-norm distance of a small multiple of
    max(out, in)·2⁻⁵² of the given one; they are inflated by 1 + 8·max(out, in)·2⁻⁵² to cover it. Float32 and bfloat16
    weights convert to float64 exactly, so the bound is about the stored weights themselves.

    **Raises:** ValueError if the matrix holds a NaN or an infinity: it has no norm.
    """
    matrix = np.asarray(matrix)
    if matrix.dtype.kind in "cOSU":
        raise ValueError(f"the matrix holds {matrix.dtype}, not real numbers")
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError("the matrix holds NaN or infinite entries")
    sigma = np.linalg.svd(matrix, compute_uv=False)[..., 0]
    return np.asarray(sigma * (1 + 8 * max(matrix.shape[-2:]) * 2.0**-52))


def rms_norm(matrix: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
    """A rigorous upper bound of the RMS→RMS norm σ₁·√(in/out), in float64 (see `spectral_norm`)."""
    return np.asarray(spectral_norm(matrix) * rms_factor(*matrix.shape[-2:]) * (1 + 2.0**-50))


def rms_to_max_norm(matrix: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
    """A rigorous upper bound of the RMS→∞ norm maxⱼ‖wⱼ‖₂·√in: how far one output entry can move."""
    rows = np.linalg.norm(np.asarray(matrix).astype(np.float64), axis=-1)
    in_size = matrix.shape[-1]
    return np.asarray(rows.max(-1) * np.sqrt(in_size) * (1 + (in_size + 8) * 2.0**-52))


def _bits(dtype: DTypeLike) -> tuple[Any, int, int]:
    """The integers that floats are stored as, and which of their bits are all but the sign, and the exponent."""
    if jnp.dtype(dtype).itemsize == 8:
        return jnp.int64, 2**63 - 1, 0x7FF0 << 48
    return jnp.int32, 2**31 - 1, 0x7F80 << 16


def repeat(body: Callable[..., Any], start: Any, xs: Any = None, length: int = 0) -> tuple[Any, list[Any]]:
    """`jax.lax.scan` over the rows of a NumPy array, or so many times, written out; outputs come as a list.

    Inside a compilation that is told to be quick it stays a loop, which is compiled once for all rounds, in half of the
    time, and runs slower (small matrices by a tenth of a training step).
    """
    rounds = length if xs is None else len(xs)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(start))
    if traced and jax.config.read("jax_disable_most_optimizations"):
        carry, stacked = jax.lax.scan(body, start, xs, rounds)
        return carry, [jax.tree.map(lambda x, index=index: x[index], stacked) for index in range(rounds)]
    outputs = []
    for index in range(rounds):
        start, output = body(start, None if xs is None else xs[index])
        outputs.append(output)
    return start, outputs


def power_of_two(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The largest power of two up to x ≥ 0, exact: x without its mantissa; 1 for zero and what devices take for it."""
    integer, _, exponent = _bits(x.dtype)
    power = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, integer) & exponent, x.dtype)
    return jnp.where(power > 0, power, 1)


def scaled(
    matrix: Float[Array, "*batch m n"],
) -> tuple[Float[Array, "*batch m n"], Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """(W/c, c, W ≠ 0) for each matrix, c the power of two that brings the largest entry into [1, 2).

    Entries above 2¹²⁴ (in float32) end below 16 all the same.

    The division is exact for all but entries below 2⁻¹²⁶ of the largest, and c at least float32's smallest normal
    number 2⁻¹²⁶. So squares neither overflow nor vanish, whatever the scale of W. Devices take numbers below 2⁻¹²⁶ for
    zero: what is compared here are their bits.
    """
    integer, magnitude, exponent = _bits(matrix.dtype)
    bits = jnp.max(jax.lax.bitcast_convert_type(jax.lax.stop_gradient(matrix), integer) & magnitude, axis=(-2, -1))
    smallest = np.asarray(jnp.finfo(matrix.dtype).tiny, matrix.dtype)
    unit = jax.lax.bitcast_convert_type(bits & exponent, matrix.dtype)
    # A compiler may multiply by 1/c instead, which has to be a number that does not vanish.
    unit = jnp.clip(unit, smallest, 0.25 / smallest)
    return matrix / unit[..., None, None], unit, bits > 0


def gram_norm(matrix: Float[Array, "*batch m n"], squarings: int = GRAM_SQUARINGS) -> Float[Array, "*batch"]:
    """An upper bound of σ₁ from matrix products alone, rounding included: jittable, batched, differentiable.

    Gram iteration (Delattre et al. 2023, arXiv 2305.16173): σ₁² = ‖WWᵀ‖ and ‖P‖² = ‖PPᵀ‖ ≤ ‖P‖_F², so squaring k times
    leaves an excess of at most s^(1/(4·2^k)) in σ₁, s the smaller side.

    **Rounding.** Let Q₀ be the computed Gram matrix of W, Pₖ = Qₖ/cₖ with a power of two cₖ (exact), Qₖ₊₁ the computed
    PₖPₖᵀ. An entry of a product AAᵀ over n terms is off by at most γ_n·(|A||A|ᵀ) (see `gamma`), so

        ‖Pₖ‖² ≤ ‖Qₖ₊₁‖ + γ_s·min(‖Pₖ‖_F², ‖Pₖ‖₁‖Pₖ‖_∞),     σ₁² ≤ c₀‖P₀‖ + γ_n‖W‖_F²,

    for ‖|A|‖ is at most ‖A‖_F and at most √(‖A‖₁‖A‖_∞). Every term on the right is computed (‖A‖_F² as the trace of
    the product), so the inequalities are evaluated from the last square, ‖Pₖ‖ ≤ ‖Pₖ‖_F, back to the first. Sums of n
    terms of one sign come out at least (1-u)ⁿ of what they are, and the scalars' own roundings and numbers that vanish
    add less than 16u. Since γ_n‖W‖_F²/2σ₁² is at most γ_n·s/2, all this costs 0.002% at 24×24 and, where all singular
    values are equal, 0.3% at 768×768 and 0.6% at 768×3072.

    The working precision is at least float32. Products are taken to round as float32 (or float64) does, as they do on
    CPUs and, with precision "highest", on GPUs.
    """
    matrix = matrix.astype(at_least_float32(matrix.dtype))
    u, size = unit_roundoff(matrix.dtype), min(matrix.shape[-2:])
    x, unit, nonzero = scaled(matrix)
    product, terms = small_gram(x), gram_terms(x.shape)

    def square_it(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        product, error = carry
        divisor = power_of_two(jax.lax.stop_gradient(jnp.trace(product, axis1=-2, axis2=-1)))
        power = product / divisor[..., None, None]
        squared = jnp.matmul(power, power.mT, precision="highest")
        spread = jnp.minimum(_trace(squared, size), _largest_sums(power))
        return (squared, gamma(size, u) * spread), (divisor, error)

    start = product, gamma(terms, u) * _trace(product, terms)
    (product, error), stages = repeat(square_it, start, length=squarings)
    stages = [*stages, (jnp.ones_like(unit), error)]
    # The smallest positive number keeps the gradient at zero finite.
    square = jnp.maximum(jnp.sum(product**2, axis=(-2, -1)) * math.exp((size**2 + 2) * u), jnp.finfo(x.dtype).tiny)
    bound = jnp.sqrt(square)
    for divisor, error in reversed(stages):
        bound = jnp.sqrt(jnp.maximum(divisor * bound + error, jnp.finfo(x.dtype).tiny))
    vanished = float(jnp.finfo(x.dtype).tiny) * math.prod(matrix.shape[-2:]) ** 0.5
    return jnp.where(nonzero, unit * bound * (1 + 16 * u) + vanished, 0)


def _trace(product: Float[Array, "*batch s s"], terms: int) -> Float[Array, "*batch"]:
    """At least ‖A‖_F², from AAᵀ with so many terms an entry."""
    inflation = math.exp((terms + product.shape[-1] + 2) * unit_roundoff(product.dtype))
    return jnp.trace(product, axis1=-2, axis2=-1) * inflation


def _largest_sums(power: Float[Array, "*batch s s"]) -> Float[Array, "*batch"]:
    """At least ‖A‖₁‖A‖_∞: the largest sums of absolute values of a column and of a row."""
    sizes = jnp.abs(power)
    inflation = math.exp((2 * power.shape[-1] + 2) * unit_roundoff(power.dtype))
    return jnp.max(jnp.sum(sizes, axis=-1), axis=-1) * jnp.max(jnp.sum(sizes, axis=-2), axis=-1) * inflation


def gram_excess(shape: Sequence[int], dtype: DTypeLike, squarings: int = GRAM_SQUARINGS) -> float:
    """By how much `gram_norm` exceeds σ₁, relative, where all singular values are equal: an aim, and no bound, which
    is `lipzoo.theory.excess.largest_gram_excess`."""
    size, u = min(shape[-2:]), unit_roundoff(at_least_float32(dtype))
    rounding = (gamma(gram_terms(shape), u) * size + 4 * gamma(size, u)) / 2 + 32 * u
    return size ** (0.25 / 2**squarings) * (1 + rounding) - 1


def estimate_top_singular(
    matrix: Float[Array, "*batch m n"], key: PRNGKeyArray, squarings: int = GRAM_SQUARINGS
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch m"], Float[Array, "*batch n"]]:
    """An *estimate* (σ, u, v) of the top singular triple; σ ≤ σ₁, so it must never enter a certificate.

    2^`squarings` steps of power iteration from a random vector, done as repeated squaring of the smaller Gram matrix;
    the vector of the other side follows by one product with the matrix.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        sigma, v, u = estimate_top_singular(matrix.mT, key, squarings)
        return sigma, u, v
    tiny = jnp.finfo(matrix.dtype).tiny
    matrix, unit, _ = scaled(matrix)
    power = small_gram(matrix)
    for squaring in range(squarings + 1):
        if squaring:
            power = jnp.matmul(power, power, precision="highest")
        power = power / jnp.maximum(jnp.linalg.norm(power, axis=(-2, -1), keepdims=True), tiny)
    u = jnp.einsum("...ij,...j->...i", power, jax.random.normal(key, matrix.shape[:-1], matrix.dtype))
    u = u / jnp.maximum(jnp.linalg.norm(u, axis=-1, keepdims=True), tiny)
    image = jnp.einsum("...ij,...i->...j", matrix, u)
    sigma = jnp.linalg.norm(image, axis=-1)
    return sigma * unit, u, image / jnp.maximum(sigma, tiny)[..., None]
