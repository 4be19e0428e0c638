"""Sandwich layers (Wang & Manchester 2023, arXiv 2301.11526)."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.layers.base import AbstractModule, check_axes
from lipzoo.layers.product import product
from lipzoo.layers.reparametrized.base import (
    RELU,
    bias_norm,
    check_last,
    check_raw,
    check_slopes,
    column,
    image_space,
    matrix,
    norm,
    plus,
    raw,
)
from lipzoo.layers.reparametrized.cayley import CAYLEY
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Space, Vector
from lipzoo.theory.weight import Measure, Weight

BALANCED = math.sqrt(2) - 1
"""σ of raw numbers [0, V] with which A is I/√2, so that A and B share the norm of a row equally."""


class Sandwich(AbstractModule):
    """x ↦ √2·Aᵀφ(√2·√(out/in)·Bx + b), [A B] = Q the effective matrix, of shape (out, out + in).

    φ is a function of entries with slopes in [0, 1]. With D those at x, and h = √(out/in) taken into the input, whose
    ℓ₂ norm is then √out of the RMS norm, the Jacobian is J = 2AᵀDB. For unit vectors u, v and a = Au, b = Bv

        uᵀJv = 2aᵀDb = ((a + b)ᵀD(a + b) - (a - b)ᵀD(a - b))/2 ≤ ‖a + b‖²/2 = ‖Q(u; v)‖²/2 ≤ s²,  s = σ₁(Q),

    since ‖(u; v)‖² = 2: the map is s²-Lipschitz in RMS norms. MaxMin has no diagonal D: with A = diag(1, 0), B =
    diag(0, 1) and two entries that it exchanges, J has norm 2.

    Published is √2·AᵀΨφ(√2·Ψ⁻¹Bx + b) with a diagonal Ψ > 0. With ReLU it only multiplies b, and is left out here.
    """

    weight: Weight
    bias: Weight | None = None
    activation: AbstractModule = RELU

    def __check_init__(self) -> None:
        check_raw(self.weight, "Sandwich")
        check_slopes(self.activation, self.weight.name)

    @property
    def takes(self) -> Space:
        return Vector((self._sizes[1],))

    @property
    def _sizes(self) -> tuple[int, int]:
        """Of the output, and of the input."""
        out_size, both = self.weight.array.shape[-2:]
        return out_size, both - out_size

    def __call__(self, x: Float[Array, "*pixels in"]) -> Float[Array, "*pixels out"]:
        out_size, in_size = self._sizes
        check_last(x, in_size, self.weight.name)
        q = math.sqrt(2) * matrix(self.weight)
        first = (math.sqrt(out_size / in_size) * q[:, out_size:]).astype(x.dtype)
        hidden = self.activation(plus(product(x, first), self.bias))
        return product(hidden, q[:, :out_size].mT.astype(x.dtype))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(s²r + √2·s‖b‖, s²L): the image of 0 is √2·Aᵀφ(b), and ‖A‖ ≤ s, |φ(b)| ≤ |b|."""
        check_axes(self.weight, "a matrix", "(out, out + in)")
        out_size, in_size = self._sizes
        space = image_space(incoming, self.weight.name, in_size, out_size)
        s = norm(self.weight, measure)
        image = incoming.scale(s * s).to(space)
        if self.bias is None:
            return image
        return image.shift(math.sqrt(2) * (1 + 2.0**-50) * s * bias_norm(self.bias, out_size, measure))


def sandwich(
    out_size: int,
    in_size: int,
    *,
    name: str,
    share: float,
    key: PRNGKeyArray,
    bias: bool = False,
    activation: AbstractModule = RELU,
) -> Sandwich:
    """A sandwich whose outer matrix is I at first, and whose inner one is semi-orthogonal, or random beside it.

    **Raises:** ValueError unless φ has slopes in [0, 1].
    """
    inner = raw(key, out_size, in_size, name, share, CAYLEY, BALANCED * math.sqrt(in_size / out_size))
    both = jnp.concatenate([jnp.zeros((out_size, out_size), jnp.float32), inner.array], axis=1)
    weight = dataclasses.replace(inner, array=both)
    return Sandwich(weight, column(out_size, name, share, bias), activation)
