"""Convex potential layers (Meunier et al. 2022, arXiv 2110.12690)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.reparametrized.base import RELU, Potential, check_square, column, exact_in_unit, in_unit, raw
from lipzoo.theory.geometry import Raw
from lipzoo.theory.norms import repeat, spectral_norm
from lipzoo.theory.products import small_gram

SQUARINGS = 5
"""k of the norm of order p = 4·2ᵏ = 128, which exceeds σ₁ by at most s^(1/128): 4.4% at s = 256."""
ORDER = 4 * 2**SQUARINGS


class Normalized(Raw):
    """Q = X/‖X‖ₚ with the Schatten norm ‖X‖ₚ = (Σσᵢᵖ)^(1/p) ≥ σ₁, p = 128. Q does not depend on the scale of X.

    Published is σ₁ by power iteration, an estimate from below. This norm comes from products alone (Gram iteration,
    Delattre et al. 2023, arXiv 2305.16173): ‖X‖ₚ² = ‖(XXᵀ)^m‖_F^(1/m) with m = p/4 = 2ᵏ.
    """

    def unit(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch out in"]:
        x = in_unit(array)
        q = x / jnp.sqrt(_square(x))[..., None, None]
        return q if array.shape[-2] <= array.shape[-1] else q.mT

    def unit_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """σ₁/‖X‖ₚ = (Σ(σᵢ/σ₁)ᵖ)^(-1/p), from LAPACK's singular values, each off by at most what σ₁ is inflated by."""
        x = exact_in_unit(array)
        sigma, largest = np.linalg.svd(x, compute_uv=False), spectral_norm(x)
        off = (largest - sigma[..., 0])[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.maximum(sigma[..., 1:] - off, 0.0) / largest[..., None]
        total = 1 + (ratios**ORDER).sum(-1) * (1 - 2.0**-40)
        return np.asarray(np.where(largest > 0, total ** (-1 / ORDER) * (1 + 2.0**-48), 0.0))


def _square(x: Float[Array, "*batch s l"]) -> Float[Array, "*batch"]:
    """‖X‖ₚ², where the largest entry lies in [1, 2).

    With P₀ = XXᵀ, fⱼ = ‖Pⱼ‖_F and Pⱼ₊₁ = (Pⱼ/fⱼ)² it is ∏ fⱼ^(1/2ʲ) up to j = k, and f₀ ≥ 1/√s, fⱼ ≥ 1/√s.
    """

    def divided(product: Array) -> tuple[Array, Array]:
        size = jnp.sqrt(jnp.maximum(jnp.sum(product**2, axis=(-2, -1)), 2.0**-40))  # Below only for zero.
        return product / size[..., None, None], size

    def square_it(product: Array, _: None) -> tuple[Array, Array]:
        power, size = divided(product)
        return jnp.matmul(power, power, precision="highest"), size

    product, sizes = repeat(square_it, small_gram(x), length=SQUARINGS)
    total = jnp.ones_like(sizes[0])
    for level, size in enumerate([*sizes, divided(product)[1]]):
        total = total * size ** (1 / 2**level)
    return total


CPL = Normalized()


def cpl(
    out_size: int,
    in_size: int,
    *,
    name: str,
    share: float,
    key: PRNGKeyArray,
    bias: bool = False,
    activation: AbstractModule = RELU,
) -> Potential:
    """x ↦ x - 2Qᵀφ(Qx + b), Q of norm at most 1, a multiple of an orthogonal matrix at first.

    Published is x - 2/σ₁²·Wᵀφ(Wx + b): with ReLU the same maps, if σ₁ is ‖W‖ₚ and b is σ₁ times as large.

    **Raises:** ValueError unless sizes are equal and φ has slopes in [0, 1].
    """
    check_square(out_size, in_size, name)
    weight = raw(key, out_size, in_size, name, share, CPL)
    return Potential(weight, column(out_size, name, share, bias), activation)
