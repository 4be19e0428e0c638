"""Functions of entries, and of groups of them, with their steepest slopes."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule, check_positive
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.numbers import Scalar, log_times, log_up
from lipzoo.theory.runs import Arithmetic
from lipzoo.theory.slopes import UNIT
from lipzoo.theory.space import Space, Vector
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure

GELU_SLOPE = {"exact": 1.1289041451852, "tanh": 1.1289930686588}
"""sup GELU', rounded up: of x·Φ(x) at x = √2, and of the tanh form that JAX runs by default."""
GELU_DIVISOR = 1.129
"""c above both slopes, so that GELU/c is 1-Lipschitz."""
GELU_CURVATURE = 0.7979
"""sup |GELU''|, at 0, rounded up: 2φ(0) = √(2/π) in both forms."""
Entries = Float[np.ndarray, " n"]


class AbstractElementwise(AbstractModule):
    """A function of entries that knows its slopes, and its own values in float64."""

    tokenwise = True

    @abc.abstractmethod
    def values(self, x: Entries) -> Entries:
        """The function in NumPy's float64, off by at most 64 units of roundoff of |x| and of itself."""

    @abc.abstractmethod
    def slopes(self, low: Entries, high: Entries) -> tuple[Entries, Entries]:
        """Between what the slopes lie where each entry stays in [low, high], which may be infinite."""

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """By the slopes that entries can have (see `Ellipsoid.slopes`). Of a ball no multipliers make less than one."""
        low, high = self.slopes(*incoming.interval())
        if incoming.is_ball:
            return incoming.stretched(float(np.maximum(abs(low), abs(high)).max(initial=0.0)), incoming.size)
        return incoming.slopes(low, high, steering.steer(incoming.size), self._around(incoming.around, high, low))

    def _around(self, around: Around | None, high: Entries, low: Entries) -> Around | None:
        if around is None:
            return None
        image = self.values(around.center)
        rounding = 64 * UNIT * float(np.linalg.norm(around.center) + np.linalg.norm(image))
        steepest = max(abs(high).max(initial=0.0), abs(low).max(initial=0.0))
        return Around(image, around.reach, (steepest * around.blur + rounding) * 1.01)


class Identity(AbstractModule):
    """x ↦ x."""

    deviates = True
    tokenwise = True

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming.sized("Identity")

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """The same."""
        return incoming


class ReLU(AbstractElementwise):
    """max(x, 0): 1-Lipschitz and |max(x, 0)| ≤ |x|, so nothing changes."""

    deviates = True

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.relu(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same. What runs may take small entries for 0."""
        return incoming.sized("ReLU").off(lambda runs: runs.counted(lambda a: a.smallest))

    def values(self, x: Entries) -> Entries:
        return np.maximum(x, 0)

    def slopes(self, low: Entries, high: Entries) -> tuple[Entries, Entries]:
        """1 where an entry stays above 0, 0 where it stays below, [0, 1] where it may do both."""
        return np.where(low >= 0, 1.0, 0.0), np.where(high <= 0, 0.0, 1.0)


class GELU(AbstractElementwise):
    """GELU(x)/c. |GELU(x)| ≤ |x| gives the radius r/c; the slope is at most g = sup GELU', 1.1290 rounded up."""

    deviates = True
    divisor: float = eqx.field(static=True, default=GELU_DIVISOR)
    exact: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        check_positive(self.divisor, "the divisor of a GELU")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.gelu(x, approximate=not self.exact) / self.divisor

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r/c, gL/c). With c ≥ g the map is 1-Lipschitz, which is then said without rounding.

        What runs: in the tanh form the argument z = √(2/π)(x + 0.044715x³) is off by γ₇ of itself, since both terms
        have one sign; as sup |z/cosh² z| < 1/2, tanh z by half of that, and by its own error ρ and rounding; then a
        sum and a product with |x| ≥ |x|(1 + tanh z)/2: with these 7/4 + 1/2 + 2 roundings of |x|, and ρ/2, and three
        roundings of the divisor, its inverse and the product. In the other form, with sup |y·erfc'(y)| < 1/2, fewer.
        """
        divisor = float(self.divisor)
        slope = GELU_SLOPE["exact" if self.exact else "tanh"] / divisor
        like = incoming.sized("GELU").log_radius
        image = incoming.grow(log_up(1 / divisor, like), log_up(max(slope, 1.0), like))

        def error(a: Arithmetic) -> Scalar:
            function = a.functions.erfc if self.exact else a.functions.tanh
            vanished = a.smallest * (1 + (2 + 8 * incoming.radius) / divisor)  # Before the division, and after it.
            return function * image.radius + a.rounded(8, image.radius) + vanished + a.holds(divisor)

        return image.off(lambda runs: runs.counted(error))

    def values(self, x: Entries) -> Entries:
        share = _normal(x) if self.exact else (1 + np.tanh(_bend(x))) / 2
        return x * share / float(self.divisor)

    def slopes(self, low: Entries, high: Entries) -> tuple[Entries, Entries]:
        """Around the slope in the middle, which changes by at most sup |GELU''| = 0.7979 a unit; and never beyond
        [1 - g, g]: GELU(x) - GELU(-x) = x, so that slopes at x and -x have the sum 1."""
        steepest = GELU_SLOPE["exact" if self.exact else "tanh"]
        bounded = np.isfinite(low) & np.isfinite(high)
        with np.errstate(invalid="ignore"):
            middle, half = np.where(bounded, (low + high) / 2, 0.0), np.where(bounded, (high - low) / 2, math.inf)
        change = GELU_CURVATURE * half + 1e-12
        least = np.maximum(self._slope(middle) - change, 1 - steepest)
        most = np.minimum(self._slope(middle) + change, steepest)
        return least / self.divisor * (1 + 4 * UNIT * np.where(least < 0, 1, -1)), most / self.divisor * (1 + 4 * UNIT)

    def _slope(self, x: Entries) -> Entries:
        """GELU', before the division."""
        if self.exact:
            return _normal(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        bend = np.tanh(_bend(x))
        return (1 + bend) / 2 + x / 2 * (1 - bend**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)


def _normal(x: Entries) -> Entries:
    """Φ, the distribution function of a normal number."""
    return np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x])


def _bend(x: Entries) -> Entries:
    """√(2/π)·(x + 0.044715x³), in the tanh form of GELU."""
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


class Tanh(AbstractElementwise):
    """c·tanh(x/c), the tanh soft cap; c = 1 is the plain activation. 1-Lipschitz, at most |x| and at most c."""

    deviates = True
    limit: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_positive(self.limit, "the limit of a tanh")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.limit * jnp.tanh(x / self.limit)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(min(r, c), L).

        What runs: x is multiplied by the rounded inverse of a rounded c, which changes tanh by no more of itself than
        x, since z/cosh² z ≤ tanh z; then come tanh's own error, its rounding, and the product with the rounded c.
        """
        image = incoming.sized("Tanh").clip(self.limit)

        def error(a: Arithmetic) -> Scalar:
            vanished = 2 * a.smallest * (1 + self.limit) + a.holds(float(self.limit))
            return a.functions.tanh * image.radius + a.rounded(6, image.radius) + vanished

        return image.off(lambda runs: runs.counted(error))

    def values(self, x: Entries) -> Entries:
        return self.limit * np.tanh(x / self.limit)

    def slopes(self, low: Entries, high: Entries) -> tuple[Entries, Entries]:
        """1/cosh², which falls with the distance from 0."""
        near = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(abs(low), abs(high)))
        far = np.maximum(abs(low), abs(high))
        with np.errstate(over="ignore"):
            least, most = (1 / np.cosh(x / self.limit) ** 2 for x in (far, near))
        return least * (1 - 1e-12), np.clip(most * (1 + 1e-12), 1e-90, 1.0)


class SquaredReLU(AbstractElementwise):
    """max(x, 0)² on vectors of `size` entries (So et al. 2021, arXiv 2109.08668): steeper the larger its input."""

    deviates = True
    size: int = eqx.field(static=True)

    @property
    def takes(self) -> Space:
        return Vector((self.size,))

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        if x.size != self.size:
            raise ValueError(f"a squared ReLU of size {self.size} was given a vector of {x.size} entries")
        return jax.nn.relu(x) ** 2

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(√n·r², 2√n·rL): no entry is above √n·r, so none is multiplied by more than that, nor is any slope above
        twice that. What runs rounds the square.
        """
        radius = incoming.vector("SquaredReLU", self.size).log_radius
        largest = log_times(log_up(math.sqrt(self.size), radius), radius)
        image = incoming.grow(largest, log_times(log_up(2.0, radius), largest))
        return image.off(lambda runs: runs.rounded(1, image.radius))

    def values(self, x: Entries) -> Entries:
        return np.maximum(x, 0) ** 2

    def slopes(self, low: Entries, high: Entries) -> tuple[Entries, Entries]:
        """2·max(x, 0), which rises."""
        return 2 * np.maximum(low, 0), 2 * np.maximum(high, 0)

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """By slopes around one input; where there is none, by the steepest that an input of that size can have."""
        if incoming.around is None:
            return AbstractModule.spread(self, incoming, reach, steering)
        return AbstractElementwise.spread(self, incoming, reach, steering)
