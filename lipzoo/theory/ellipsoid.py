"""How a change of the input can spread through a network: an ellipsoid instead of a ball.

Let Δz be the change of an activation where the input changes by Δx. A ball says ‖Δz‖₂ ≤ L‖Δx‖₂; the ellipsoid of a
positive semidefinite S says that Δz lies in it times ‖Δx‖₂: ⟨a, Δz⟩² ≤ aᵀSa·‖Δx‖₂² for every a. So L² = λmax(S), and a
difference of two entries has the constant √(Sⱼⱼ + Sₖₖ - 2Sⱼₖ). A matrix takes S to WSWᵀ, exactly. A function of entries
is where something is lost, and less than by a ball, which forgets that the next matrix stretches other directions:

**Slopes.** Let every entry be multiplied by something in [lᵢ, lᵢ + rᵢ]: Δz = lΔv + ry, and yᵢ(Δvᵢ - yᵢ) ≥ 0, since y is
Δv times something in [0, 1]. With multipliers Λ = T² ≥ 0, diagonal, and vᵀA⁻¹v ≤ 1 (units of ‖Δx‖),

    vᵀA⁻¹v - 2yᵀΛ(v - y) ≤ 1,

an ellipsoid for (v, y) if B = 2I - TAT is positive definite, whose image under (l, r) is, by the inverse of the 2×2
blocks,

    S = lAl + F B⁻¹ Fᵀ,   F = lAT + rT⁻¹.

Entries whose slope is known (r = 0) need no multiplier: T and their columns of F are 0. For slopes in [0, 1], as of
ReLU, it is S = (2Λ - ΛAΛ)⁻¹; Λ = I/‖A‖ is what ECLipsE-Fast takes (Xu & Sivaranjani 2024, arXiv 2404.04375); for
slopes in [-1, 1] it is the diagonal matrix 2Λ⁻¹ ≥ A. Multiplying the entries between two layers by a diagonal matrix
and dividing by it changes no network, and Λ contains that freedom. Any Λ gives a bound, so that it may be sought in any
precision; S itself is computed in float64, and what its roundings may change is added to its diagonal.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lipzoo.theory.numbers import namespace
from lipzoo.theory.products import gamma
from lipzoo.theory.slopes import (
    LARGEST,
    SMALLEST,
    SURE,
    UNIT,
    Entries,
    Matrix,
    NoEllipsoid,
    Rectangle,
    checked,
    not_vanished,
    raised,
    round_up,
    rounded,
    symmetric,
    through_slopes,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Around:
    """The ball of inputs that a local bound speaks of, seen from an activation.

    **Attributes:**

    - `center`: the activation at the input in the middle, off by at most `blur` in ℓ₂.
    - `reach`: the ℓ₂ radius of the ball of inputs.
    """

    center: Float[np.ndarray, " n"]
    reach: float
    blur: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Ellipsoid:
    """⟨a, Δz⟩² ≤ aᵀSa·‖Δx‖₂² for all a, and all inputs of the domain, or of a ball `around` one of them.

    **Attributes:**

    - `matrix`: S; None for a ball, `ball` times the identity, which large activations have no room for.
    - `size`: entries of the activation.
    """

    matrix: Matrix | None
    size: int
    around: Around | None = None
    ball: Any = 1.0

    @property
    def is_ball(self) -> bool:
        """Whether all directions are alike, and nothing is known of single inputs."""
        return self.matrix is None and self.around is None

    def through(self, weight: Rectangle, norm: float, bias: Float[np.ndarray, " out"] | None = None) -> "Ellipsoid":
        """Of Wz + b, with ‖W‖₂ ≤ norm: WSWᵀ. Sums of n products twice are off by at most γ₂ₙ|W||S||Wᵀ|, whose row sums
        bound its norm."""
        xp = namespace(weight, self.ball if self.matrix is None else self.matrix)
        weight = weight if self.matrix is None else xp.asarray(weight, self.matrix.dtype)
        half = self.ball * weight if self.matrix is None else weight @ self.matrix
        image = symmetric(half @ weight.mT)
        if xp is np:
            size = abs(weight)
            rows = self.ball * size.sum(0) if self.matrix is None else abs(self.matrix) @ size.sum(0)
            if weight.any() and not SMALLEST**0.5 < size.max() < LARGEST**0.5:
                raise NoEllipsoid
            sources = (weight,) if self.matrix is None else (weight, self.matrix)
            image = raised(
                not_vanished(image, *sources), gamma(2 * self.size + 8, UNIT) * (size @ rows).max(initial=0.0)
            )
        return Ellipsoid(image, weight.shape[-2], affine(self.around, weight, norm, bias))

    def scaled(self, factor: float) -> "Ellipsoid":
        """Of sz: s²S. The factor may itself be rounded, once."""
        around = self.around and Around(
            factor * self.around.center,
            self.around.reach,
            abs(factor) * self.around.blur * SURE + 4 * UNIT * _size(factor * self.around.center),
        )
        if self.matrix is None:
            return Ellipsoid(None, self.size, around, _alive_ball(round_up(factor**2) * self.ball, factor, self.ball))
        image = rounded(round_up(factor**2) * self.matrix)
        return Ellipsoid(_alive(image, factor, self.matrix), self.size, around)

    def stretched(self, gain: float, size: int, around: Around | None = None) -> "Ellipsoid":
        """Of any map to `size` entries that is `gain`-Lipschitz in ℓ₂: the ball (gain²·λmax(S))I."""
        return Ellipsoid(None, size, around, _alive_ball(round_up(gain) ** 2 * self.top, gain, self.top))

    def permuted(self, order: Int[np.ndarray, " n"]) -> "Ellipsoid":
        """Of z[order]."""
        around = self.around and Around(self.around.center[order], self.around.reach, self.around.blur)
        matrix = None if self.matrix is None else self.matrix[order][:, order]
        return Ellipsoid(matrix, self.size, around, self.ball)

    def slopes(self, low: Entries, high: Entries, steer: Any, around: Around | None = None) -> "Ellipsoid":
        """Of a function of entries with slopes in [low, high]; `steer` is log Λ up to a factor (0 for equal ones)."""
        low, high = (np.broadcast_to(np.asarray(x, np.float64), self.size) for x in (low, high))
        range_ = np.where(high > low, np.nextafter(high - low, math.inf), 0.0)
        return Ellipsoid(through_slopes(self.full, low, range_, steer), self.size, around)

    def plus(self, other: "Ellipsoid", weights: tuple[float, float]) -> "Ellipsoid":
        """Of a·z + b·w, w what `other` is of, from one input: (1 + t)a²S + (1 + 1/t)b²S' for any t > 0 (Cauchy and
        Schwarz: (p + q)² ≤ (1 + t)p² + (1 + 1/t)q²); t is such that both have the same trace."""
        if self.is_ball and other.is_ball:
            xp = namespace(self.ball, other.ball)
            reach = sum(w * xp.sqrt(part.ball) for w, part in zip(weights, (self, other), strict=True))
            return Ellipsoid(None, self.size, None, _alive_ball(reach**2, weights, (self.ball, other.ball)))
        xp = namespace(self.full, other.full)
        first, second = (round_up(w**2) * part.full for w, part in zip(weights, (self, other), strict=True))
        traces = xp.trace(first), xp.trace(second)
        if xp is np and 0 in traces:  # One of them does not move, unless it vanished below what float64 can hold.
            for part, weight, scaled in zip((self, other), weights, (first, second), strict=True):
                _alive(scaled, weight, part.full)
            return Ellipsoid(rounded(first + second), self.size, _sum(self, other, weights))
        t = jax.lax.stop_gradient(xp.sqrt(traces[1] / traces[0])) if xp is jnp else math.sqrt(traces[1] / traces[0])
        first, second = (1 + t) * first, (1 + 1 / t) * second
        total = rounded(first + second, abs(first) + abs(second))
        return Ellipsoid(_alive(total, traces), self.size, _sum(self, other, weights))

    @property
    def full(self) -> Matrix:
        """S as a matrix."""
        return self.ball * np.eye(self.size) if self.matrix is None else self.matrix

    @property
    def top(self) -> Any:
        """λmax(S), rounded up by the backward error of LAPACK: L²."""
        if self.matrix is None:
            return self.ball if isinstance(self.ball, jax.Array) else np.float64(self.ball)
        if isinstance(self.matrix, jax.Array):
            return jnp.linalg.eigvalsh(self.matrix)[-1]
        values = np.linalg.eigvalsh(checked(self.matrix))
        return max(values[-1], 0.0) + 8 * self.size * 2 * UNIT * abs(values).max()

    @property
    def lipschitz(self) -> Any:
        """L, ℓ₂ → ℓ₂, rounded up."""
        return round_up(namespace(self.top).sqrt(self.top))

    def pairs(self) -> Any:
        """Dⱼₖ = √(Sⱼⱼ + Sₖₖ - 2Sⱼₖ), rounded up: |Δzⱼ - Δzₖ| ≤ Dⱼₖ‖Δx‖₂."""
        xp, S = namespace(self.full), self.full
        sizes = xp.diagonal(S)
        squares = sizes[:, None] + sizes[None, :] - 2 * S
        if xp is np:
            squares = np.maximum(squares, 0) + 8 * UNIT * (sizes[:, None] + sizes[None, :] + 2 * abs(S))
        squares = xp.where(np.eye(self.size, dtype=bool), 0.0, squares)
        return round_up(xp.sqrt(squares))

    def interval(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Between what each entry stays, in the ball of inputs."""
        if self.around is None:
            return np.full(self.size, -math.inf), np.full(self.size, math.inf)
        center = self.around.center
        squares = np.full(self.size, self.ball) if self.matrix is None else np.maximum(np.diagonal(self.matrix), 0)
        half = self.around.reach * np.sqrt(squares) * (1 + 8 * UNIT) + self.around.blur
        half = half + 8 * UNIT * (abs(center) + half)
        return center - half, center + half


def _alive_ball(ball: Any, *sources: Any) -> Any:
    """A ball, rounded up, if float64 has room for it."""
    if isinstance(ball, jax.Array):
        return ball
    alive = all(np.all(np.asarray(source) != 0) for source in sources)
    if (alive and ball == 0) or not (ball == 0 or SMALLEST < ball < LARGEST):
        raise NoEllipsoid
    return np.float64(ball) * (1 + 16 * UNIT)


def _alive(image: Matrix, *sources: Any) -> Matrix:
    return not_vanished(image, *sources) if isinstance(image, np.ndarray) else image


def _size(vector: Float[np.ndarray, " n"]) -> float:
    """The ℓ₂ norm, rounded up."""
    return float(np.linalg.norm(vector)) * (1 + 4 * len(vector) * UNIT)


def affine(around: Around | None, weight: Any, norm: float, bias: Float[np.ndarray, " out"] | None) -> Around | None:
    """The middle after Wz + b; its error grows by at most ‖W‖₂, and by what roundings add."""
    if around is None:
        return None
    offset = np.zeros(weight.shape[-2]) if bias is None else bias
    rounding = gamma(weight.shape[-1] + 2, UNIT) * _size(abs(weight) @ abs(around.center) + abs(offset))
    blur = SURE * (rounding + norm * around.blur)
    return Around(weight @ around.center + offset, around.reach, blur)


def _sum(first: Ellipsoid, second: Ellipsoid, weights: tuple[float, float]) -> Around | None:
    if first.around is None or second.around is None:
        return None
    parts = [w * part.around.center for w, part in zip(weights, (first, second), strict=True)]  # pyright: ignore
    blur = sum(abs(w) * part.around.blur for w, part in zip(weights, (first, second), strict=True))  # pyright: ignore
    rounding = 3 * UNIT * sum(_size(part) for part in parts)
    return Around(parts[0] + parts[1], first.around.reach, SURE * (blur + rounding))
