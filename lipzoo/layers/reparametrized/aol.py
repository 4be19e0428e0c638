"""Almost orthogonal layers (Prach & Lampert 2022, arXiv 2208.03160), and their row sums in float64."""

import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.layers.reparametrized.base import UnitLinear, column, exact_in_unit, in_unit, raw
from lipzoo.theory.geometry import Raw
from lipzoo.theory.msign import balance
from lipzoo.theory.norms import spectral_norm
from lipzoo.theory.products import gamma, small_gram

UNIT = 2.0**-53


class AlmostOrthogonal(Raw):
    """Q = DX, D = diag(Σⱼ|XXᵀ|ᵢⱼ)^(-½), of raw numbers X lying wide; transposed for tall ones.

    **Proof.** With G = XXᵀ, sums tᵢ = Σⱼ|Gᵢⱼ| and any v, as |ab| ≤ (a² + b²)/2,

        ‖Qᵀv‖² = Σᵢⱼ Gᵢⱼ vᵢvⱼ/√(tᵢtⱼ) ≤ Σᵢⱼ |Gᵢⱼ|(vᵢ²/tᵢ + vⱼ²/tⱼ)/2 = Σᵢ vᵢ²/tᵢ·tᵢ = ‖v‖².

    A row of zeros stays one. Q does not depend on the scale of X. Published is D on the side of the inputs; for wide
    matrices that of the outputs is as valid, takes less, and leaves more of the norm.
    """

    def unit(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch out in"]:
        x = in_unit(array)
        q = balance(small_gram(x)) * x
        return q if array.shape[-2] <= array.shape[-1] else q.mT

    def unit_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """σ₁(D'X) with D' ≥ D, D by sums that are not above those of exact arithmetic: DX = (D/D')D'X, ‖D/D'‖ ≤ 1.

        Rounding D'X adds at most 2u√s of its norm.
        """
        x = exact_in_unit(array)
        sums, some = row_sums(x)[0], x.any(-1)
        with np.errstate(divide="ignore"):
            factors = np.where(some, 1 / np.sqrt(sums), 0.0) * (1 + 8 * UNIT)
        if not np.isfinite(factors).all():  # No float32 lies so far below another.
            return np.full(x.shape[:-2], np.inf)
        return np.asarray(spectral_norm(factors[..., None] * x) * (1 + 4 * UNIT * x.shape[-2] ** 0.5))

    def exact_unit(self, array: Float[np.ndarray, "out in"]) -> tuple[Float[np.ndarray, "out in"], float] | None:
        """D'X of `unit_norm`, off by ‖(D' - D)X‖_F, where D is at least that by sums that are not below those meant."""
        x = exact_in_unit(array)
        low, high = (np.where(x.any(-1), sums, 1.0) for sums in row_sums(x))
        if not (low > 0).all():
            return None
        q = x / np.sqrt(low)[:, None]
        # Of an entry of D'X: 1 - √(low/high) ≤ (high - low)/low, and roundings of root, quotient and BELOW.
        off = np.linalg.norm(q * ((high - low) / low + 16 * UNIT)[:, None]) * (1 + 2.0**-20)
        return (q if array.shape[-2] <= array.shape[-1] else q.mT), float(off)


def row_sums(x: Float[np.ndarray, "*batch s l"]) -> tuple[Float[np.ndarray, "*batch s"], Float[np.ndarray, "*batch s"]]:
    """Between what Σⱼ|XXᵀ|ᵢⱼ lies, the lower end at least about ‖xᵢ‖², where the largest entry lies in [1, 2).

    A computed entry is off by at most γ(|X||X|ᵀ)ᵢⱼ, the sum by γ of itself. The diagonal has terms of one sign.
    """
    size, terms = abs(x), gamma(sum(x.shape[-2:]) + 8, UNIT)
    gram = x @ x.mT
    sums, error = abs(gram).sum(-1), 1.01 * terms * (size @ size.sum(-2)[..., None])[..., 0] + 2.0**-1000
    squares = np.einsum("...ij,...ij->...i", x, x) * (1 - terms)
    low = np.maximum(sums * (1 - terms) - error, np.where(squares > 2.0**-900, squares, 0.0))
    return low, sums * (1 + terms) + error


AOL = AlmostOrthogonal()


def aol(out_size: int, in_size: int, *, name: str, share: float, key: PRNGKeyArray, bias: bool = False) -> UnitLinear:
    """x ↦ √(out/in)·Qx + b with an almost orthogonal Q, orthogonal at first."""
    return UnitLinear(raw(key, out_size, in_size, name, share, AOL), column(out_size, name, share, bias))
