"""Linear maps, and fixed ones: matrices, gains, factors, reshaping."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule, check_axes, check_column, check_shape, check_weight
from lipzoo.layers.product import product
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.numbers import Scalar, namespace
from lipzoo.theory.runs import Arithmetic, Runs
from lipzoo.theory.space import Space, SpaceError, Vector, entries
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight

ROOM = 4096
"""Entries of activations up to which ellipsoids of them are written out as matrices, unless they have to be."""


class Linear(AbstractModule):
    """x ↦ Wx + b. The bias, if any, is a `Weight` of one column."""

    deviates = True
    weight: Weight
    bias: Weight | None = None

    def __check_init__(self) -> None:
        check_weight(self.weight, "Linear", "(out, in)")

    @property
    def takes(self) -> Space:
        return Vector(self.weight.array.shape[-1:])

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        check_shape(x, self.weight.array.shape[-1:], self.weight.name)
        y = product(x, self.weight.array)
        return y if self.bias is None else y + self.bias.array[:, 0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(‖W‖r + ‖b‖, ‖W‖L). What runs is off as `Runs.product` and `Runs.plus` say."""
        incoming.vector(self.weight.name, self.weight.array.shape[-1], flat=True)
        return _affine(self.weight, self.bias, incoming, (), measure)

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """WSWᵀ."""
        return steering.through(incoming, self.weight, self.bias)


class Pointwise(AbstractModule):
    """x ↦ Wx + b on the channels of every pixel of an image (height, width, channels): a convolution of one pixel.

    An image is one vector, measured by the RMS norm of all of its entries. ‖Wx_p + b‖ ≤ ‖W‖‖x_p‖ + ‖b‖ at each pixel p,
    and the root of the mean of squares over pixels of such a sum is at most the sum of the roots (Minkowski): so the
    bound is that of the matrix alone. The same holds for what runs, which is off by at most a‖x_p‖ + b at each pixel.
    """

    deviates = True
    weight: Weight
    bias: Weight | None = None

    def __check_init__(self) -> None:
        check_weight(self.weight, "Pointwise", "(out, in)")

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "height width out"]:
        if x.ndim != 3 or x.shape[-1] != self.weight.array.shape[-1]:
            wanted = f"one image of shape (height, width, {self.weight.array.shape[-1]})"
            raise ValueError(f"{self.weight.name} takes {wanted}, but was given shape {x.shape}: for a batch, jax.vmap")
        y = product(x, self.weight.array)
        return y if self.bias is None else y + _row(self.bias.array[:, 0], y)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(‖W‖r + ‖b‖, ‖W‖L). What runs is off as `Runs.product` and `Runs.plus` say."""
        height, width, _ = image_shape(incoming, self.weight.name, self.weight.array.shape[-1])
        return _affine(self.weight, self.bias, incoming, (height, width), measure)


def _affine(weight: Weight, bias: Weight | None, incoming: Bound, pixels: tuple[int, ...], measure: Measure) -> Bound:
    """The bound of Wx + b on the last axis of an array."""
    check_axes(weight, "a matrix")
    weight.geometry.check_multiplied(weight.name)
    if bias is not None:
        check_column(bias, weight.array.shape[0])
    image = incoming.scale(measure(weight)).to(Vector((*pixels, weight.array.shape[0])))
    if bias is not None:
        image = image.shift(measure(bias))

    def error(runs: Runs) -> Scalar:
        off = runs.product(weight, incoming.radius, measure)
        return off if bias is None else runs.plus(off, bias, measure(weight) * incoming.radius, measure)

    return image.off(error)


def image_shape(incoming: Bound, who: str, channels: int | None = None) -> tuple[int, int, int]:
    """(height, width, channels) of what comes in. Raises SpaceError unless it is an image (of so many channels)."""
    space = incoming.space
    if isinstance(space, Vector) and len(space.shape) == 3 and channels in (None, space.shape[-1]):
        return space.shape  # pyright: ignore[reportReturnType]
    last = "channels" if channels is None else str(channels)
    raise SpaceError(f"{who} takes an image (height, width, {last}), but was given {space}")


class Flatten(AbstractModule):
    """An array of any shape as one vector, which has the same RMS norm."""

    deviates = True

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " size"]:
        return x.reshape(-1)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same. Tokens are measured one by one, so a sequence of them is not one vector of the same norm."""
        size = incoming.vector("Flatten").space.size  # pyright: ignore[reportAttributeAccessIssue]
        return incoming.to(Vector((size,)))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """The same."""
        return incoming


class Scale(AbstractModule):
    """x ↦ sx for a fixed s."""

    deviates = True
    tokenwise = True
    factor: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.factor * x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(|s|r, |s|L). The factor is rounded, and the product."""
        factor = abs(float(self.factor))
        image = incoming.sized("Scale").scale(factor)

        def error(a: Arithmetic) -> Scalar:  # Entries may vanish, and are then multiplied.
            return a.rounded(2, image.radius) + a.smallest * factor + a.holds(factor)

        return image.off(lambda runs: runs.counted(error))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """s²S."""
        return incoming.scaled(float(self.factor))


class Affine(AbstractModule):
    """γ ⊙ x + β. `gain` holds γ as 1×1 matrices, shape (size, 1, 1), so that a norm of it is that of one entry."""

    deviates = True
    tokenwise = True
    gain: Weight
    bias: Weight | None = None

    def __check_init__(self) -> None:
        check_weight(self.gain, "Affine", "(size, 1, 1)")

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        y = x * _row(self.gain.array[:, 0, 0], x)
        return y if self.bias is None else y + _row(self.bias.array[:, 0], x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(max|γ|·r + ‖β‖, max|γ|·L). What runs is off by max|γ̂ - γ|·r, and rounds product and sum."""
        check_axes(self.gain, "a gain", "(size, 1, 1)")
        self.gain.geometry.check_multiplied(self.gain.name)
        if self.bias is not None:
            check_column(self.bias, self.gain.array.shape[0])
        _check_last(incoming, self.gain, "Affine")
        image = incoming.scale(largest(measure(self.gain)))
        if self.bias is not None:
            image = image.shift(measure(self.bias))
        return image.off(lambda runs: self._error(runs, incoming.radius, measure))

    def _error(self, runs: Runs, radius: Scalar, measure: Measure) -> Scalar:
        error = gain_error(runs, self.gain, radius, measure)
        size = largest(measure(self.gain)) * radius
        return error if self.bias is None else runs.plus(error, self.bias, size, measure)

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """ΓSΓ with the diagonal matrix of γ; of a ball in a space that has no room for matrices, a larger ball."""
        if incoming.is_ball and incoming.size > ROOM:
            return incoming.stretched(float(largest(steering.measure(self.gain))), incoming.size)
        gain = steering.array(self.gain)[:, 0, 0]
        times, xp = incoming.size // gain.shape[0], namespace(gain)
        offset = None
        if self.bias is not None and incoming.around is not None:
            offset = np.tile(steering.array(self.bias)[:, 0], times)
        norm = float(largest(steering.measure(self.gain)))
        return incoming.through(xp.diag(xp.tile(gain, times)), norm, offset)


def gain_error(runs: Runs, gain: Weight, radius: Scalar, measure: Measure) -> Scalar:
    """By how much γ ⊙ x is off, ‖x‖ ≤ r: max|γ̂ - γ|·r, and a rounding; entries of γ̂ and of x may vanish."""
    moved, size = largest(runs.difference(gain)), largest(measure(gain))
    vanished = runs.counted(lambda a: a.smallest * (radius + size + moved))
    return moved * radius + runs.rounded(1, (size + moved) * radius) + vanished


def _check_last(incoming: Bound, gain: Weight, who: str) -> None:
    """Raises SpaceError unless what comes in has one entry in its last axis for each of the gain's."""
    space, size = incoming.sized(who).space, gain.array.shape[0]
    if entries(space) != size:
        raise SpaceError(f"{gain.name} multiplies {size} entries, but was given {space}")


def _row(vector: Float[Array, " size"], like: Float[Array, "*batch size"]) -> Float[Array, "*ones size"]:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def largest(values: Scalar) -> Scalar:
    return namespace(values).max(values)
