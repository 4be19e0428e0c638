"""Norms of weights: upper bounds for certificates, upper bounds inside jit, and estimates named as such.

A matrix W of shape (out, in) has the RMS→RMS norm ‖W‖ = σ₁(W)·√(in/out): the largest factor by which it can change the
RMS norm of a vector. Functions here take any number of leading batch axes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

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
    matrix = np.asarray(matrix).astype(np.float64)
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


def small_gram(matrix: Float[Array, "*batch m n"]) -> Float[Array, "*batch s s"]:
    """WWᵀ or WᵀW, whichever is smaller (s = min(m, n)); its eigenvalues are the squared singular values."""
    transposed = matrix.mT
    wide = matrix.shape[-2] <= matrix.shape[-1]
    left, right = (matrix, transposed) if wide else (transposed, matrix)
    return jnp.matmul(left, right, precision="highest")


def identity_like(square: Float[Array, "*batch s s"]) -> Float[Array, "*batch s s"]:
    """The identity matrix, as many times as `square` has matrices."""
    return jnp.broadcast_to(jnp.eye(square.shape[-1], dtype=square.dtype), square.shape)


def gram_norm(matrix: Float[Array, "*batch m n"], squarings: int = GRAM_SQUARINGS) -> Float[Array, "*batch"]:
    """An upper bound of σ₁ from matrix products alone: jittable, batched, differentiable.

    Gram iteration (Delattre et al. 2023, arXiv 2305.16173): with A the smaller Gram matrix and s its size,
    σ₁² = λ₁(A) ≤ ‖A^(2^k)‖_F^(1/2^k), and the excess of σ₁ is at most s^(1/(4·2^k)). Each squaring is renormalized by
    its Frobenius norm, whose logarithms add up. The result is inflated by 8·√max(m, n) units of the working precision
    (at least float32) for the rounding of the products.
    """
    dtype = matrix.dtype if matrix.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    matrix = matrix.astype(dtype)
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1))
    unit = jnp.where(largest > 0, largest, 1)
    power = small_gram(matrix / unit[..., None, None])
    log_lambda = jnp.zeros(power.shape[:-2], dtype)
    for squaring in range(squarings + 1):
        if squaring:
            power = jnp.matmul(power, power, precision="highest")
        size = jnp.sqrt(jnp.maximum(jnp.sum(power**2, axis=(-2, -1)), jnp.finfo(dtype).tiny))
        power = power / size[..., None, None]
        log_lambda = log_lambda + jnp.log(size) / 2**squaring
    margin = 8 * max(matrix.shape[-2:]) ** 0.5 * float(jnp.finfo(dtype).eps)
    return largest * jnp.exp(log_lambda / 2) * (1 + margin)


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
    power = small_gram(matrix)
    for squaring in range(squarings + 1):
        if squaring:
            power = jnp.matmul(power, power, precision="highest")
        power = power / jnp.maximum(jnp.linalg.norm(power, axis=(-2, -1), keepdims=True), tiny)
    u = jnp.einsum("...ij,...j->...i", power, jax.random.normal(key, matrix.shape[:-1], matrix.dtype))
    u = u / jnp.maximum(jnp.linalg.norm(u, axis=-1, keepdims=True), tiny)
    image = jnp.einsum("...ij,...i->...j", matrix, u)
    sigma = jnp.linalg.norm(image, axis=-1)
    return sigma, u, image / jnp.maximum(sigma, tiny)[..., None]
