"""The ellipsoid after a function of entries, and matrices that only err upwards, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.theory.numbers import namespace
from lipzoo.theory.products import gamma

UNIT = 2.0**-53
"""u of float64."""
SURE = 1.01
"""Roundings are estimated by sums that are themselves rounded, by far less than a hundredth."""
NEAREST, FARTHEST = 1.99, 1.5
"""How near TAT may come to 2, where its largest eigenvalue is known, and where it is estimated."""
STEEP = 1.2
"""Above this, multipliers are scaled by the norm of all entries: with slopes in [-1, 1] and 2Λ⁻¹ = ‖A‖ none is lost."""
ROUNDS = 24
"""Rounds of the power iteration that scales multipliers."""
SMALLEST, LARGEST = 1e-200, 1e200
"""Squares of norms between which nothing underflows that is not covered by what is added."""
Matrix = Float[Array, "n n"] | Float[np.ndarray, "n n"]
Rectangle = Float[Array, "out in"] | Float[np.ndarray, "out in"]
Entries = Float[np.ndarray, " n"] | float


class NoEllipsoid(ArithmeticError):
    """Numbers are too far apart for float64 to show that there is an ellipsoid: balls have to do."""


def through_slopes(A: Matrix, low: Any, range_: Any, steer: Any) -> Matrix:
    """lAl + FB⁻¹Fᵀ. Entries that do not move, or whose slope is known, need no multiplier."""
    xp = namespace(A)
    A = checked(A) if isinstance(A, np.ndarray) else A
    fixed = not low.any()
    moving = range_ > 0 if xp is jnp else (range_ > 0) & (np.diagonal(A) > 0)
    open_ = np.flatnonzero(moving)
    scale = _scale(low[open_], range_[open_], NEAREST if xp is np else FARTHEST)
    alive = np.flatnonzero((low != 0) | (range_ > 0))  # Of what slopes leave, known ones too.
    low, range_ = xp.asarray(low, A.dtype), xp.asarray(range_, A.dtype)
    known = low[:, None] * A * low[None, :]
    if not open_.size:
        return known if xp is jnp else not_vanished(rounded(known), A, low)
    weight = xp.exp(steer / 2) if np.ndim(steer) else xp.ones(len(low), A.dtype)
    counted = alive if scale.max() > STEEP else open_
    weighed = (weight[:, None] * A * weight[None, :])[np.ix_(counted, counted)]
    top = _top(weighed) if xp is np and scale.max() > FARTHEST else _estimate(weighed)
    root = weight[open_] * xp.asarray(np.sqrt(scale), A.dtype) / xp.sqrt(top)
    inner = A if open_.size == len(low) else A[np.ix_(open_, open_)]
    inverse, root = _inverse(inner, root)
    diagonal = range_[open_] / root
    if fixed:  # F is diagonal.
        image = diagonal[:, None] * inverse * diagonal[None, :]
        image = image if open_.size == len(low) else _scattered(image, open_, len(low))
        return image if xp is jnp else not_vanished(rounded(image), A)
    place = xp.asarray(np.eye(len(low))[:, open_], A.dtype)
    factor = low[:, None] * A[:, open_] * root[None, :] + place * diagonal[None, :]
    image = known + factor @ inverse @ factor.mT
    if xp is jnp:
        return image
    size = abs(low)[:, None] * abs(A[:, open_]) * root + place * diagonal
    rows = size @ (abs(inverse) @ size.sum(0)) + abs(known).sum(1)
    return not_vanished(raised(symmetric(image), gamma(2 * open_.size + 16, UNIT) * rows.max()), A)


def _scattered(image: Matrix, places: np.ndarray, size: int) -> Any:
    """A matrix of zeros with `image` at these rows and columns."""
    zeros = namespace(image).zeros((size, size), image.dtype)
    index = np.ix_(places, places)
    if isinstance(image, jax.Array):
        return zeros.at[index].set(image)
    zeros[index] = image
    return zeros


def _scale(low: Entries, range_: Entries, most: float) -> Float[np.ndarray, " n"]:
    """τ = r/(l + r), for which TAT = τ is best where A is a number, and less than 2.

    It makes (lτ + r)²/(τ(2 - τ)) smallest: its logarithm has the derivative 2l/(lτ + r) - (2 - 2τ)/(τ(2 - τ)), 0 where
    lτ + rτ = r.
    """
    steepest = np.asarray(low + range_)
    tau = np.divide(range_, steepest, out=np.full(steepest.shape, most), where=steepest > 0)
    return np.clip(tau, 0.1, most)


def _top(matrix: Float[np.ndarray, "n n"]) -> Any:
    """λmax, but for rounding."""
    return np.linalg.eigvalsh(matrix)[-1] * (1 + 1e-9)


def _estimate(matrix: Matrix) -> Any:
    """About λmax of a positive semidefinite matrix, by power iteration; its slope is that of the Rayleigh quotient."""
    xp = namespace(matrix)
    vector = xp.asarray(np.random.default_rng(0).uniform(0.5, 1.0, len(matrix)), matrix.dtype)

    def turn(_: Any, vector: Any) -> Any:
        vector = matrix @ vector
        return vector / xp.linalg.norm(vector)

    if xp is jnp:
        vector = jax.lax.stop_gradient(jax.lax.fori_loop(0, ROUNDS, turn, vector))
    else:
        for index in range(ROUNDS):
            vector = turn(index, vector)
    return vector @ (matrix @ vector)


def _inverse(A: Matrix, root: Any) -> tuple[Matrix, Any]:
    """X ≥ (2I - TAT)⁻¹ and T, which is made smaller until the matrix is positive definite.

    - B is computed to within β = γ₄‖2I + T|A|T‖, and positive definite if Cholesky's algorithm succeeds on B - mI, with
      m = γₙ₊₂tr B + β (Rump 2006, Demmel 1989).
    - With ‖I - BX‖ ≤ ρ < 1, B⁻¹ = X + B⁻¹(I - BX) gives ‖B⁻¹ - X‖ ≤ ‖X‖ρ/(1 - ρ). The residual is computed, and what
      roundings it has is added: γₙ₊₂|B||X|, and β‖X‖.
    """
    if isinstance(A, jax.Array):
        return jnp.linalg.inv(2 * jnp.eye(len(A), dtype=A.dtype) - root[:, None] * A * root[None, :]), root
    identity, count = np.eye(len(A)), len(A)
    for _ in range(8):
        product = root[:, None] * A * root[None, :]
        B = 2 * identity - product
        beta = gamma(4, UNIT) * SURE * (2 + abs(product).sum(1).max())
        try:
            np.linalg.cholesky(B - (SURE * gamma(count + 2, UNIT) * np.trace(B) + beta) * identity)
            break
        except np.linalg.LinAlgError:
            root = root * 0.8
    else:
        raise NoEllipsoid
    X = symmetric(np.linalg.inv(B))
    size = abs(X).sum(1).max()  # Row sums bound the norm of a symmetric matrix.
    residual = np.linalg.norm(identity - B @ X) + gamma(count + 2, UNIT) * abs(B).sum(1).max() * size + beta * size
    if not residual * SURE < 0.5:
        raise NoEllipsoid
    return raised(X, size * 2 * residual), root


def checked(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The matrix, if its numbers are neither too large nor too small to be squared and multiplied."""
    largest = abs(matrix).max(initial=0.0)
    if not (largest == 0 or SMALLEST < largest < LARGEST):
        raise NoEllipsoid
    return matrix


def not_vanished(image: Matrix, *sources: Any) -> Float[np.ndarray, "n n"]:
    """The image of what is not zero, checked: it must not have vanished below what float64 can hold."""
    if not image.any() and all(np.any(source) for source in sources):
        raise NoEllipsoid
    return checked(np.asarray(image))


def raised(matrix: Matrix, error: Any) -> Float[np.ndarray, "n n"]:
    """The matrix plus what it may be off by, and what adding that rounds, times the identity."""
    return matrix + SURE * (error + UNIT * abs(np.diagonal(matrix)).max(initial=0.0)) * np.eye(len(matrix))


def rounded(matrix: Matrix, size: Any = None) -> Matrix:
    """A matrix whose entries were each computed by a few operations, made an upper bound; `size` is what their absolute
    values sum up to, where parts may have cancelled."""
    if isinstance(matrix, jax.Array):
        return matrix
    return raised(symmetric(matrix), gamma(16, UNIT) * abs(matrix if size is None else size).sum(1).max(initial=0.0))


def symmetric(matrix: Matrix) -> Matrix:
    return (matrix + matrix.mT) / 2


def round_up(value: Any) -> Any:
    return value * (1 + 2.0**-50)
