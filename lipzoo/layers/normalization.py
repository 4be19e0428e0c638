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
from lipzoo.theory.slopes import UNIT
from lipzoo.theory.weight import Measure

NORM_EPSILON = 1e-6
"""ε of normalization layers. Their Lipschitz constant is 1/√ε."""


class RMSNorm(AbstractModule):
    """x/√(mean x² + ε) (Zhang & Sennrich 2019, arXiv 1910.07467), without learned gains: see `Affine`."""

    tokenwise = True
    epsilon: float = eqx.field(static=True, default=NORM_EPSILON)

    def __check_init__(self) -> None:
        check_positive(self.epsilon, "the epsilon of a normalization")

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # Squares of bfloat16 keep eight bits.
        scale = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(x.dtype)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(min(1, r/√ε), L/√ε): the derivative is (I - x̂x̂ᵀ/n)/√(mean x² + ε) with a norm of at most 1/√ε."""
        return incoming.sized("RMSNorm").scale(1 / math.sqrt(float(self.epsilon))).clip(1.0)

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """The derivative is at most 1/√(mean x² + ε) on the way, where tokens are no smaller than |center| - radius."""
        least = np.maximum(rms(incoming.center) - incoming.radius, 0)
        epsilon = float(self.epsilon)
        center = incoming.center / np.sqrt(np.mean(incoming.center**2, axis=1, keepdims=True) + epsilon)
        rounding = 64 * UNIT * incoming.sizes  # Of the center's norm, before it is divided.
        return incoming.moved(center, (incoming.radius + rounding) / np.sqrt(least**2 + epsilon))


class Center(AbstractModule):
    """c·(x - mean x): a projection, hence 1-Lipschitz for c = 1."""

    tokenwise = True
    factor: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        return self.factor * (x - jnp.mean(x, axis=-1, keepdims=True))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(|c|r, |c|L)."""
        return incoming.sized("Center").scale(abs(self.factor))


def layer_norm(epsilon: float = NORM_EPSILON) -> "Sequential":
    """(x - mean x)/√(var x + ε) (Ba et al. 2016, arXiv 1607.06450), without learned gains."""
    return Sequential([Center(), RMSNorm(epsilon)])
