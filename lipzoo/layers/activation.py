"""Functions of entries, and of groups of them, with their steepest slopes."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule, check_positive
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import log_times, log_up
from lipzoo.theory.space import Space, SpaceError, Vector
from lipzoo.theory.weight import Measure

GELU_SLOPE = {"exact": 1.1289041451852, "tanh": 1.1289930686588}
"""sup GELU', rounded up: of x·Φ(x) at x = √2, and of the tanh form that JAX runs by default."""
GELU_DIVISOR = 1.129
"""c above both slopes, so that GELU/c is 1-Lipschitz."""


class Identity(AbstractModule):
    """x ↦ x."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming.sized("Identity")


class ReLU(AbstractModule):
    """max(x, 0): 1-Lipschitz and |max(x, 0)| ≤ |x|, so nothing changes."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.relu(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming.sized("ReLU")


class GELU(AbstractModule):
    """GELU(x)/c. |GELU(x)| ≤ |x| gives the radius r/c; the slope is at most g = sup GELU', 1.1290 rounded up."""

    divisor: float = eqx.field(static=True, default=GELU_DIVISOR)
    exact: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        check_positive(self.divisor, "the divisor of a GELU")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.gelu(x, approximate=not self.exact) / self.divisor

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r/c, gL/c). With c ≥ g the map is 1-Lipschitz, which is then said without rounding."""
        divisor = float(self.divisor)
        slope = GELU_SLOPE["exact" if self.exact else "tanh"] / divisor
        like = incoming.sized("GELU").log_radius
        return incoming.grow(log_up(1 / divisor, like), log_up(max(slope, 1.0), like))


class Tanh(AbstractModule):
    """c·tanh(x/c), the tanh soft cap; c = 1 is the plain activation. 1-Lipschitz, at most |x| and at most c."""

    limit: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_positive(self.limit, "the limit of a tanh")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.limit * jnp.tanh(x / self.limit)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(min(r, c), L)."""
        return incoming.sized("Tanh").clip(self.limit)


class SquaredReLU(AbstractModule):
    """max(x, 0)² on vectors of `size` entries (So et al. 2021, arXiv 2109.08668): steeper the larger its input."""

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
        twice that.
        """
        radius = incoming.vector("SquaredReLU", self.size).log_radius
        largest = log_times(log_up(math.sqrt(self.size), radius), radius)
        return incoming.grow(largest, log_times(log_up(2.0, radius), largest))


class GroupSort(AbstractModule):
    """Sorts each group of neighbouring entries (Anil et al. 2019, arXiv 1811.05381); groups of 2 are MaxMin.

    It permutes entries, which keeps the norm, and sorting is 1-Lipschitz.
    """

    group: int = eqx.field(static=True, default=2)

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        if x.size % self.group:
            raise ValueError(f"groups of {self.group} do not divide a vector of {x.size} entries")
        if self.group == 2:
            first, second = x[0::2], x[1::2]
            pairs = (jnp.minimum(first, second), jnp.maximum(first, second))
            return jnp.stack(pairs, axis=-1).reshape(-1)
        return jnp.sort(x.reshape(-1, self.group), axis=-1).reshape(-1)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        size = incoming.vector("GroupSort", flat=True).space.size  # pyright: ignore[reportAttributeAccessIssue]
        if size % self.group:
            raise SpaceError(f"groups of {self.group} do not divide {incoming.space}")
        return incoming
