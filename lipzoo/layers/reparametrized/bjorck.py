"""Orthogonal layers by Björck's iteration (Anil et al. 2019, arXiv 1811.05381)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.layers.reparametrized.aol import row_sums
from lipzoo.layers.reparametrized.base import UnitLinear, column, exact_in_unit, in_unit, raw
from lipzoo.theory.geometry import Raw
from lipzoo.theory.norms import repeat, spectral_norm
from lipzoo.theory.products import gamma, identity_like, small_gram

ROUNDS = 12
"""Rounds of X ← X(3I - XᵀX)/2: singular values above 1% of the largest row sum's root come to 99.99% of 1."""


class Bjorck(Raw):
    """Q = p(p(…(X/c))), p(σ) = σ(3 - σ²)/2 on singular values, c² = maxᵢ Σⱼ|XXᵀ|ᵢⱼ, of raw numbers X lying wide;
    transposed for tall ones. Q does not depend on the scale of X.

    **Proof.** σ₁² = ‖XXᵀ‖ ≤ c² (Gershgorin), and p maps [0, 1] into itself, increasing: p' = 3(1 - σ²)/2. All it takes
    is σ₁ ≤ √3·c. Rounds that do not suffice leave singular values below 1.
    """

    def unit(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch out in"]:
        """By products of the smaller side: Xₖ = YₖX/c, so Zₖ = XₖXₖᵀ, T = (3I - Zₖ)/2, Yₖ₊₁ = YₖT, Zₖ₊₁ = ZₖT²."""
        x = in_unit(array)
        gram = small_gram(x)
        square = jnp.max(jnp.sum(jnp.abs(gram), axis=-1), axis=-1)[..., None, None]
        square = jnp.where(square > 0, square, 1)
        q = jnp.matmul(_polynomial(gram / square), x / jnp.sqrt(square), precision="highest")
        return q if array.shape[-2] <= array.shape[-1] else q.mT

    def unit_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """The polynomial at σ₁/c, rounded up. Singular values of Q are its values at those of X/c, and it rises to 1 at
        1, stays in [0, 1] up to √3, and beyond is at most what follows from |p(σ)| ≤ max(1, σ³)."""
        x = exact_in_unit(array)
        sums = row_sums(x)[0].max(-1)
        ratio = np.where(sums > 0, spectral_norm(x) / np.sqrt(np.where(sums > 0, sums, 1)), 0.0) * (1 + 2.0**-48)
        value = np.minimum(ratio, 1.0)
        for _ in range(ROUNDS):
            value = np.minimum(value * (3 - value * value) / 2 * (1 + 2.0**-49), 1.0)
        return np.asarray(np.where(ratio < 1.7, value, np.inf))

    def exact_unit(self, array: Float[np.ndarray, "out in"]) -> tuple[Float[np.ndarray, "out in"], float] | None:
        """All rounds in float64. What is off by e in Frobenius norm before one is off by at most 1.5e(1 + e + e²) after
        it, and by its own roundings r.

        For in a basis of singular vectors, the derivative of X ↦ (3I - XXᵀ)X/2 takes the pair (Eᵢⱼ, Eⱼᵢ) to aE - bEᵀ,
        a = (3 - σᵢ² - σⱼ²)/2, b = σᵢσⱼ/2, and 0 ≤ a ± b ≤ 3/2 for σ ≤ 1; what is of second and third order is at most
        3e²/2 and e³/2. And with f = ‖X‖_F, products are off by γf² and then by γ(f³/2 + ‖3I - XXᵀ‖_F·f/2).
        """
        x = exact_in_unit(array)
        low, high = (float(sums.max()) for sums in row_sums(x))
        if not low > 0:
            return None
        x, terms = x / np.sqrt(low), gamma(sum(x.shape) + 8, 2.0**-53)
        off = float((high / low - 1 + 2.0**-50) * np.linalg.norm(x) * 1.01)
        for _ in range(ROUNDS):
            size, step = float(np.linalg.norm(x)), 1.5 * np.eye(len(x)) - 0.5 * x @ x.T
            rounding = terms * (size**3 + 2 * float(np.linalg.norm(step)) * size + size)
            x, off = step @ x, (1.5 * off * (1 + off + off * off) + rounding) * 1.01
        return (x if array.shape[-2] <= array.shape[-1] else x.T), off


def _polynomial(gram: Float[Array, "*batch s s"]) -> Float[Array, "*batch s s"]:
    """Y after all rounds, from XXᵀ/c²."""

    def one_round(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        total, gram = carry
        step = 1.5 * identity_like(gram) - 0.5 * gram
        return (_product(total, step), _product(_product(gram, step), step)), None

    first = 1.5 * identity_like(gram) - 0.5 * gram
    start = first, _product(_product(gram, first), first)
    return repeat(one_round, start, length=ROUNDS - 1)[0][0]


def _product(left: Float[Array, "*b s s"], right: Float[Array, "*b s s"]) -> Float[Array, "*b s s"]:
    return jnp.matmul(left, right, precision="highest")


BJORCK = Bjorck()


def bjorck(
    out_size: int, in_size: int, *, name: str, share: float, key: PRNGKeyArray, bias: bool = False
) -> UnitLinear:
    """x ↦ √(out/in)·Qx + b with Q semi-orthogonal as far as the rounds go. Raw numbers are at first such a matrix."""
    return UnitLinear(raw(key, out_size, in_size, name, share, BJORCK), column(out_size, name, share, bias))
