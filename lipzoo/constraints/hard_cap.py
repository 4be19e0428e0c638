"""Spectral hard cap: exact, by a matrix sign; and the published polynomial."""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.constraints.base import Cap, Constraint, Step, aim, normalize, precision, wide_product
from lipzoo.theory import msign, norms
from lipzoo.theory.precision import rounded

HARD_CAP_ROWS: msign.Polynomial = (
    (0.805032, 0.206361, -0.019763),
    (0.649867, 0.162935, -0.011150),
    (1.810259, -0.200265, 0.008251),
    (1.004384, -0.183490, 0.014413),
)
"""Approximates min(1, σ) on [0, 3]: off by up to 0.034, at most 1.0109, and divergent beyond 4."""

LARGEST_ARGUMENT = 3.1

SIGN_RESOLUTION = 1e-4
SIGN_ROWS = msign.polar_express(9, SIGN_RESOLUTION)
LARGEST_EXCESS = 50.0
ROOT_ROWS = msign.polar_express(7, 1 / LARGEST_EXCESS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardCap(Constraint):
    """σ ↦ min(σ, σ_max), at any learning rate, from matrix products alone.

    With A = WWᵀ/β² on the smaller side and S = msign(I - A), B = max(A, I) = ½[A + I + S(I - A)], and B^(-½)W has the
    singular values σ·max(σ²/β², 1)^(-½) = min(σ, β). This is Cesista's and Su's (2025) ½[βP + W - msign(βI - PWᵀ)(βP -
    W)], P = msign(W), without the ill-conditioned P: B's eigenvalues are at least 1. Both functions are Polar Express
    polynomials, always in float32.

    Where σ²/β² is within ε·s of 1, with s = ‖I - A‖ and resolution ε = 1e-4, the computed sign lies anywhere in [-1,
    1], B between A and I, and the result between β and β√(1 + εs). Hence β = σ/(1 + εs) keeps it under σ: 0.01% below
    it when the step's excess is small. Matrices above 25 caps are first divided down to that.

    That is in exact arithmetic. So σ is σ_max less what an upper bound of the norm exceeds it by (`aim`: 0.2% to 1%),
    and whatever that bound finds above σ_max in the end is divided by.
    """

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        product = functools.partial(jnp.matmul, precision=precision(matrix))
        matrix = normalize(matrix, cap=LARGEST_EXCESS / 2 * cap)
        gram = norms.small_gram(matrix / aim(cap, matrix))
        excess = jnp.maximum(norms.gram_norm(gram), 1)[..., None, None]
        beta = 1 / (1 + SIGN_RESOLUTION * excess)
        identity = norms.identity_like(gram)
        gap = identity - gram / beta**2
        size = excess / beta**2
        larger = (gram / beta**2 + identity + product(msign.iterate(gap / size, SIGN_ROWS), gap)) / 2
        root = msign.gram_polynomial(larger / size, ROOT_ROWS) / jnp.sqrt(size)
        return normalize(wide_product(root, matrix), cap=cap)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardCapPoly(Constraint):
    """σ ↦ the published four-row approximation of min(σ, σ_max), for reproduction.

    Off by up to 3.4% of σ_max, up to 1.09% above it for σ ≤ 3σ_max, divergent beyond 4σ_max: no guarantee, and steps
    that could leave [0, 3σ_max] are refused. What lies beyond all the same is first divided down to 3.1σ_max. Newhouse
    et al. 2025 (arXiv 2507.13338), appendix.
    """

    guarantees: ClassVar[bool] = False

    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        matrix = normalize(matrix, cap=LARGEST_ARGUMENT * cap)
        low = rounded(matrix / cap, self.project_dtype)
        polynomial = msign.gram_polynomial(norms.small_gram(low), HARD_CAP_ROWS)
        return cap * wide_product(polynomial, low).astype(matrix.dtype)

    def refusal(self, cap: float, update_norm: float) -> str | None:
        if update_norm <= 1.98 * cap:
            return None
        if update_norm == float("inf"):
            return "hard-cap-poly diverges above three times its cap, and this optimizer's update norm is not bounded"
        return f"hard-cap-poly diverges above three times its cap of {cap:g}"
