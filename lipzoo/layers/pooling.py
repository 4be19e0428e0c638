"""Pooling of images over squares that do not overlap."""

import functools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.runs import Arithmetic
from lipzoo.theory.space import SpaceError, Vector
from lipzoo.theory.weight import Measure

Image = Float[Array, "height width channels"]
Pooled = Float[Array, "height_out width_out channels"]
Squares = Float[Array, "height_out p width_out p channels"]


class AveragePool(AbstractModule):
    """The means over p×p pixels of each channel: a matrix with σ₁ = 1/p, whose output has p² times fewer entries."""

    deviates = True
    size: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        _check(self.size)

    def __call__(self, x: Image) -> Pooled:
        return jnp.sum(_squares(x, self.size), axis=(1, 3)) * (1 / self.size**2)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r, L). What runs rounds p² - 1 sums and the product with the rounded 1/p², of numbers that may vanish."""
        image = incoming.to(_pooled(incoming, self.size, "AveragePool"))
        squares = self.size**2

        def error(a: Arithmetic) -> float:
            return a.rounded(squares + 2, image.radius)  # pyright: ignore[reportReturnType]

        return image.off(lambda runs: runs.counted(error))


class MaxPool(AbstractModule):
    """The largest values over p×p pixels of each channel: 1-Lipschitz in ℓ₂, since the largest of differences is no
    less than the difference of the largest, and p-Lipschitz in RMS, for the output has p² times fewer entries."""

    deviates = True
    size: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        _check(self.size)

    def __call__(self, x: Image) -> Pooled:
        squares = _squares(x, self.size)
        rows = functools.reduce(_larger, [squares[:, index] for index in range(self.size)])
        return functools.reduce(_larger, [rows[:, :, index] for index in range(self.size)])

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(pr, pL). What runs may take small entries for 0."""
        image = incoming.scale(float(self.size)).to(_pooled(incoming, self.size, "MaxPool"))
        return image.off(lambda runs: runs.counted(lambda a: a.smallest))


def _larger(a: Float[Array, "*axes"], b: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """The larger of each two, or NaN. The derivative of `jnp.max` asks which entries are equal to it: none, and is NaN,
    where a compiler computes entries twice and rounds them differently."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _check(size: int) -> None:
    if size < 1:
        raise ValueError(f"pooling needs squares of at least one pixel, got {size}")


def _squares(x: Image, size: int) -> Squares:
    height, width, channels = x.shape
    if height % size or width % size:
        raise ValueError(f"squares of {size}×{size} pixels do not divide an image of {height}×{width}")
    return x.reshape(height // size, size, width // size, size, channels)


def _pooled(incoming: Bound, size: int, who: str) -> Vector:
    """The space of outputs. Raises SpaceError unless squares divide what comes in."""
    space = incoming.vector(who).space
    shape = space.shape if isinstance(space, Vector) else ()
    if len(shape) != 3 or shape[0] % size or shape[1] % size:
        raise SpaceError(f"{who} takes images that squares of {size}×{size} pixels divide, but was given {space}")
    return Vector((shape[0] // size, shape[1] // size, shape[2]))
