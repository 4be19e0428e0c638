"""Absolute values."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.weight import Measure


class Abs(AbstractModule):
    """|x| for the first `fraction` of the entries of the last axis, and x for the others.

    The β-Abs of LipNeXt (arXiv 2601.18513). It keeps norms, and ||x| - |y|| ≤ |x - y|.
    """

    deviates = True
    fraction: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"the fraction of entries whose sign is lost must lie in [0, 1], got {self.fraction}")

    def __call__(self, x: Float[Array, "*pixels size"]) -> Float[Array, "*pixels size"]:
        return jnp.where(np.arange(x.shape[-1]) < self.fraction * x.shape[-1], jnp.abs(x), x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same: a sign is exact, though what runs may take small entries for 0."""
        return incoming.vector("Abs").off(lambda runs: runs.counted(lambda a: a.smallest))
