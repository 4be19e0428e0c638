"""Upper bounds of σ₁ in float64 that take less than an SVD: of differences of matrices, and of absolute values."""

import numpy as np
from jaxtyping import Float

from lipzoo.theory.products import gamma

PERRON_ROUNDS = 6
"""Rounds of power iteration of a nonnegative matrix, whose largest singular value stands far above the others."""


def product_norm(matrix: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
    """A rigorous upper bound of σ₁ by the largest eigenvalue of the smaller Gram matrix in float64: several times
    faster than `spectral_norm`, and looser by about 10⁻⁸ of it at most.

    After division by the largest entry, the product is off by at most γₙ‖W‖_F² in norm, and LAPACK's eigenvalue by
    8s·2⁻⁵² of the largest; what underflows is below 2⁻¹⁰⁰⁰.
    """
    matrix = np.asarray(matrix, np.float64)
    unit = abs(matrix).max(axis=(-2, -1), initial=0.0)
    x = matrix / np.where(unit > 0, unit, 1.0)[..., None, None]
    x = x if x.shape[-2] <= x.shape[-1] else x.mT
    values = np.linalg.eigvalsh(x @ x.mT)
    rounding = gamma(x.shape[-1] + 8, 2.0**-53) * (x**2).sum((-2, -1)) + 8 * x.shape[-2] * 2.0**-52 * abs(values).max(
        -1
    )
    return np.asarray(unit * np.sqrt(np.maximum(values[..., -1], 0.0) + 1.01 * rounding) * (1 + 2.0**-48))


def absolute_norm(matrix: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
    """A rigorous upper bound of σ₁ of |W|, the matrix of absolute values, by matrix-vector products.

    Collatz and Wielandt: the spectral radius of the nonnegative |W|ᵀ|W| is at most maxᵢ (|W|ᵀ|W|v)ᵢ/vᵢ for any v > 0.
    Power iteration makes v nearly the Perron vector, where that is sharp; its sums of positive terms are off by γₙ.
    """
    size = abs(np.asarray(matrix, np.float64))
    unit = size.max(axis=(-2, -1), initial=0.0)
    x = size / np.where(unit > 0, unit, 1.0)[..., None, None]
    v = np.ones((*x.shape[:-2], x.shape[-1], 1))
    for _ in range(PERRON_ROUNDS):
        image = x.mT @ (x @ v)
        v = np.maximum(image / np.maximum(image.max(axis=(-2, -1), keepdims=True), 1e-300), 1e-9)
    square = (x.mT @ (x @ v) / v).max(axis=(-2, -1))
    inflation = 1 + 2 * gamma(sum(x.shape[-2:]) + 8, 2.0**-53)
    return np.asarray(unit * np.sqrt(square * inflation + 2.0**-900))
