"""Normalization layers, whose Lipschitz constant is 1/√ε."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule, check_positive
from lipzoo.layers.compose import Sequential
from lipzoo.theory.balls import Balls, rms
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.numbers import Scalar
from lipzoo.theory.products import at_least_float32, gamma
from lipzoo.theory.runs import Arithmetic, Runs
from lipzoo.theory.slopes import UNIT
from lipzoo.theory.space import entries, example_shape
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure

NORM_EPSILON = 1e-6
"""ε of normalization layers. Their Lipschitz constant is 1/√ε."""


class RMSNorm(AbstractModule):
    """x/√(mean x² + ε) (Zhang & Sennrich 2019, arXiv 1910.07467), without learned gains: see `Affine`."""

    deviates = True
    tokenwise = True
    epsilon: float = eqx.field(static=True, default=NORM_EPSILON)

    def __check_init__(self) -> None:
        check_positive(self.epsilon, "the epsilon of a normalization")

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        wide = x.astype(at_least_float32(x.dtype))  # Squares of bfloat16 keep eight bits.
        scale = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(x.dtype)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(min(1, r/√ε), L/√ε): the derivative is (I - x̂x̂ᵀ/n)/√(mean x² + ε) with a norm of at most 1/√ε.

        What runs is off as `normalization_error` says.
        """
        image = incoming.sized("RMSNorm").scale(1 / math.sqrt(float(self.epsilon))).clip(1.0)
        size = entries(incoming.space)
        return image.off(lambda runs: normalization_error(runs, size, float(self.epsilon), image.radius))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """As a slope in [0, 1/s], s the least √(mean x² + ε), with equal multipliers.

        The map is the gradient of the convex n·√(mean x² + ε), so that Δz = HΔx with a symmetric H, 0 ≤ H ≤ I/s, and
        y = sΔz has yᵀ(Δx - y) ≥ 0: all that ellipsoids want to know of slopes if the multipliers are equal.
        """
        size, gain, around = example_shape(reach.space)[-1], 1 / math.sqrt(float(self.epsilon)), None
        if incoming.around is not None:
            gain, around = self._around(incoming, size)
        gain *= 1 + 16 * UNIT
        if isinstance(incoming.full, np.ndarray) and not np.diagonal(incoming.full).all():
            # What an entry does that stands still is no slope of its own.
            return incoming.stretched(gain, incoming.size, around)
        return incoming.slopes(0.0, gain, 0.0, around)

    def _around(self, incoming: Ellipsoid, size: int) -> tuple[float, Around]:
        """1/s on the ball, where no row of `size` entries is smaller than its middle less what it can move."""
        around, epsilon = incoming.around, float(self.epsilon)
        assert around is not None
        rows = around.center.reshape(-1, size)
        moved = (around.reach * float(incoming.lipschitz) + around.blur) / math.sqrt(size) * (1 + 8 * UNIT)
        least = max(float(rms(rows).min()) * (1 - 8 * size * UNIT) - moved, 0.0)
        gain = 1 / math.sqrt(least**2 + epsilon)
        center = (rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + epsilon)).reshape(-1)
        rounding = gamma(size + 16, UNIT) * float(np.linalg.norm(center))
        return gain, Around(center, around.reach, 1.01 * (gain * around.blur + rounding))

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """The derivative is at most 1/√(mean x² + ε) on the way, where tokens are no smaller than |center| - radius."""
        least = np.maximum(rms(incoming.center) - incoming.radius, 0)
        epsilon = float(self.epsilon)
        center = incoming.center / np.sqrt(np.mean(incoming.center**2, axis=1, keepdims=True) + epsilon)
        rounding = 64 * UNIT * incoming.sizes  # Of the center's norm, before it is divided.
        return incoming.moved(center, (incoming.radius + rounding) / np.sqrt(least**2 + epsilon))


class Center(AbstractModule):
    """c·(x - mean x): a projection, hence 1-Lipschitz for c = 1."""

    deviates = True
    tokenwise = True
    factor: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        return self.factor * (x - jnp.mean(x, axis=-1, keepdims=True))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(|c|r, |c|L).

        The computed mean is off by γₙ₊₂ times that of |x|, which is at most r, and rounded; the difference is at most
        2r in size, and rounded, then multiplied by the factor, rounded, and rounded again.
        """
        image, size = incoming.sized("Center").scale(abs(self.factor)), entries(incoming.space)

        def error(a: Arithmetic) -> Scalar:
            off = gamma(size + 2, a.total) * incoming.radius + a.rounded(7, incoming.radius)
            return abs(self.factor) * off + 2 * a.smallest + a.holds(float(self.factor))

        return image.off(lambda runs: runs.counted(error))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """A matrix: nI - 11ᵀ, whose entries float64 holds exactly, times c/n."""
        size = example_shape(reach.space)[-1]
        matrix = np.kron(np.eye(incoming.size // size), size * np.eye(size) - 1.0)
        return incoming.through(matrix, float(size)).scaled(float(self.factor) / size)


def normalization_error(runs: Runs, size: int, epsilon: float, image: Scalar) -> Scalar:
    """By how much x/√(mean x² + ε) is off as it is computed, where it is no larger than `image`, from n entries.

    The mean is a sum of n positive terms, each rounded, divided and added to: off by γₙ₊₄ of itself, and by what
    vanishes, at most 3t, against at least ε. The root halves that; the inverse root, its product with x (both in at
    least float32), and the result are rounded; entries of x may vanish, and are then divided by no less than √ε.
    """

    def error(a: Arithmetic) -> Scalar:
        mean = gamma(size + 4, a.total) + 3 * a.smallest / epsilon
        if not mean < 0.5:
            return math.inf
        relative = (1 + mean) * (1 + a.functions.rsqrt) * (1 + a.total) - 1  # 1/√(1-x) ≤ 1+x up to 1/2.
        vanished = a.smallest / math.sqrt(epsilon)
        return relative * image + a.rounded(2, (1 + relative) * image) + vanished + a.holds(epsilon)

    return runs.counted(error)


def layer_norm(epsilon: float = NORM_EPSILON) -> "Sequential":
    """(x - mean x)/√(var x + ε) (Ba et al. 2016, arXiv 1607.06450), without learned gains."""
    return Sequential([Center(), RMSNorm(epsilon)])
