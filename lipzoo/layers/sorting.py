"""Sorting of groups of entries."""

import functools
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.activation import AbstractElementwise, Entries
from lipzoo.layers.base import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.slopes import UNIT
from lipzoo.theory.space import SpaceError, entries
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure


class GroupSort(AbstractModule):
    """Sorts each group of neighbouring entries (Anil et al. 2019, arXiv 1811.05381); groups of 2 are MaxMin.

    Of an image these are neighbouring channels, its last axis.

    It permutes entries, which keeps the norm, and sorting is 1-Lipschitz.
    """

    deviates = True
    group: int = eqx.field(static=True, default=2)

    def __call__(self, x: Float[Array, "*pixels size"]) -> Float[Array, "*pixels size"]:
        if x.shape[-1] % self.group:
            raise ValueError(f"groups of {self.group} do not divide a vector of {x.shape[-1]} entries")
        if self.group == 2:
            first, second = x[..., 0::2], x[..., 1::2]
            pairs = (jnp.minimum(first, second), jnp.maximum(first, second))
            return jnp.stack(pairs, axis=-1).reshape(x.shape)
        return jnp.sort(x.reshape(-1, self.group), axis=-1).reshape(x.shape)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        if entries(incoming.vector("GroupSort").space) % self.group:
            raise SpaceError(f"groups of {self.group} do not divide the last axis of {incoming.space}")
        return incoming.off(lambda runs: runs.counted(lambda a: 2 * a.smallest))  # Small entries may be taken for 0.

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """Pairs: (min, max) = ((a + b) ∓ |b - a|)/2, an absolute value between two fixed matrices.

        Groups of more are taken as what does not expand; sorting itself rounds nothing.
        """
        if self.group != 2 or incoming.is_ball:
            around = incoming.around
            if around is not None:
                center = np.sort(around.center.reshape(-1, self.group), axis=-1).reshape(-1)
                around = Around(center, around.reach, around.blur)
            return incoming.stretched(1.0, incoming.size, around)
        turn = _turn(incoming.size)
        turned = incoming.through(turn, math.sqrt(2) * (1 + 4 * UNIT))
        sorted_ = _Folded().spread(turned, reach, steering)
        return sorted_.through(turn.T / 2, math.sqrt(0.5) * (1 + 4 * UNIT))


@functools.lru_cache(maxsize=8)
def _turn(size: int) -> Float[np.ndarray, "n n"]:
    """(a, b) ↦ (a + b, b - a) for each pair; half its transpose is (s, d) ↦ (s - d, s + d)/2, its inverse."""
    return np.kron(np.eye(size // 2), np.array([[1.0, 1.0], [-1.0, 1.0]]))


class _Folded(AbstractElementwise):
    """The absolute value of every second entry: what a sort of pairs does to their differences."""

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return x.at[1::2].set(jnp.abs(x[1::2]))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming

    def values(self, x: Entries) -> Entries:
        return np.where(np.arange(len(x)) % 2, abs(x), x)

    def slopes(self, low: Entries, high: Entries) -> tuple[Entries, Entries]:
        """±1 where the sign is known."""
        odd = np.arange(len(low)) % 2 == 1
        return np.where(odd & (low < 0), -1.0, 1.0), np.where(odd & (high <= 0), -1.0, 1.0)
