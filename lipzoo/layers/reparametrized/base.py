"""What layers have in common whose matrices are computed, in every forward pass, so that no norm exceeds 1.

Their weights hold raw numbers, of a geometry `lipzoo.theory.geometry.Raw`, and Q is its effective matrix, σ₁(Q) ≤ 1. A
bound by caps takes that promise; a certificate does not: it measures σ₁(Q) in float64, from the raw numbers, with what
rounding can do to the measurement added, and follows the proof of the layer with what was found.

The network that a certificate speaks of has the matrices that exact arithmetic computes from the stored numbers. What
runs computes them in float32, which is not covered (`deviates` is False).

Vectors are the last axis of x: of an image (height, width, channels) every pixel is mapped by itself, and as all have
one norm at most, so has the whole in RMS norm.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.layers.activation import ReLU, Tanh
from lipzoo.layers.base import AbstractModule, check_axes, check_column, check_weight
from lipzoo.layers.init import semi_orthogonal
from lipzoo.layers.product import product
from lipzoo.theory import norms
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.geometry import BELOW, COLUMN, Raw
from lipzoo.theory.numbers import Scalar, namespace
from lipzoo.theory.products import at_least_float32
from lipzoo.theory.space import Space, SpaceError, Vector
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight

RELU = ReLU()


class UnitLinear(AbstractModule):
    """x ↦ √(out/in)·Qx + b, whose matrix has RMS→RMS norm σ₁(Q) ≤ 1. The bias, if any, is a `Weight` of one column."""

    weight: Weight
    bias: Weight | None = None

    def __check_init__(self) -> None:
        check_raw(self.weight, "UnitLinear")

    @property
    def takes(self) -> Space:
        return Vector(self.weight.array.shape[-1:])

    def __call__(self, x: Float[Array, "*pixels in"]) -> Float[Array, "*pixels out"]:
        out_size, in_size = self.weight.array.shape[-2:]
        check_last(x, in_size, self.weight.name)
        scaled = math.sqrt(out_size / in_size) * matrix(self.weight)
        return plus(product(x, scaled.astype(x.dtype)), self.bias)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(σ₁(Q)r + ‖b‖, σ₁(Q)L)."""
        check_axes(self.weight, "a matrix")
        out_size, in_size = self.weight.array.shape
        space = image_space(incoming, self.weight.name, in_size, out_size)
        image = incoming.scale(norm(self.weight, measure)).to(space)
        return image if self.bias is None else image.shift(bias_norm(self.bias, out_size, measure))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """WSWᵀ, W = √(out/in)·Q, and the ball of what W can be off by beside it: by what Q is, and by two roundings."""
        array, (out_size, in_size) = steering.array(self.weight), self.weight.array.shape
        factor = math.sqrt(out_size / in_size)
        norm_ = float(norm(self.weight, steering.measure)) * factor * (1 + 2.0**-40)
        if in_size != incoming.size:  # Of pixels.
            return super().spread(incoming, reach, steering)
        if isinstance(array, jax.Array):
            return incoming.through(factor * matrix(self.weight.with_array(array)), norm_)
        found = self.weight.geometry.exact_unit(array)  # pyright: ignore[reportAttributeAccessIssue]
        if found is None:
            return super().spread(incoming, reach, steering)
        w = factor * BELOW * found[0]
        off = (factor * found[1] + 2.0**-51 * float(np.linalg.norm(w))) * (1 + 2.0**-20)
        bias = None if self.bias is None or incoming.around is None else np.asarray(steering.array(self.bias))[:, 0]
        around = incoming.around
        if around is not None:
            moved = off * (float(np.linalg.norm(around.center)) * (1 + 2.0**-20) + around.blur)
            around = Around(np.zeros(out_size), around.reach, moved)
        rest = incoming.stretched(off, out_size, around)
        return incoming.through(w, norm_ + off, bias).plus(rest, (1.0, 1.0))


class Potential(AbstractModule):
    """x ↦ x - 2Qᵀφ(Qx + b), φ a function of entries with slopes in [0, 1]: a step down a convex potential.

    Of φ with slopes D at x, a diagonal matrix, the Jacobian is J = I - 2QᵀDQ, and 0 ≼ QᵀDQ ≼ QᵀQ ≼ s²I with s = σ₁(Q).
    So the eigenvalues of the symmetric J lie in [1 - 2s², 1], and the map is max(1, 2s² - 1)-Lipschitz: 1 for s ≤ 1.
    (Between two points φ multiplies every entry by something in [0, 1], so it needs no derivative.)

    MaxMin has no such D: Q = I and two entries that it exchanges give I - 2P, of norm 3. GELU has negative slopes.
    """

    weight: Weight
    bias: Weight | None = None
    activation: AbstractModule = RELU

    def __check_init__(self) -> None:
        check_raw(self.weight, "Potential")
        check_slopes(self.activation, self.weight.name)

    @property
    def takes(self) -> Space:
        return Vector(self.weight.array.shape[-1:])

    def __call__(self, x: Float[Array, "*pixels size"]) -> Float[Array, "*pixels size"]:
        check_last(x, self.weight.array.shape[-1], self.weight.name)
        q = matrix(self.weight).astype(x.dtype)
        return x - 2 * product(self.activation(plus(product(x, q), self.bias)), q.mT)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(max(1, 2s² - 1)r + 2s‖b‖, max(1, 2s² - 1)L): the image of 0 is -2Qᵀφ(b), and |φ(b)| ≤ |b|."""
        check_axes(self.weight, "a matrix")
        size = self.weight.array.shape[-1]
        space = image_space(incoming, self.weight.name, size, size)
        s = norm(self.weight, measure)
        gain = namespace(s).where(s <= 1, 1.0, (2 * s * s - 1) * (1 + 2.0**-40))[()]
        image = incoming.scale(gain).to(space)
        return image if self.bias is None else image.shift(2 * s * bias_norm(self.bias, size, measure))


def norm(weight: Weight, measure: Measure) -> Scalar:
    """σ₁(Q): 1 by caps, whatever cap the raw numbers were given."""
    return measure(dataclasses.replace(weight, cap=1.0))


def bias_norm(bias: Weight, size: int, measure: Measure) -> Scalar:
    """‖b‖ of a column of so many entries."""
    check_column(bias, size)
    return measure(bias)


def matrix(weight: Weight) -> Float[Array, "out in"]:
    """Q, in float32 at least."""
    return weight.geometry.effective(jnp.asarray(weight.array))  # pyright: ignore[reportAttributeAccessIssue]


def plus(y: Float[Array, "*pixels out"], bias: Weight | None) -> Float[Array, "*pixels out"]:
    """y + b on the last axis."""
    return y if bias is None else y + bias.array[:, 0].reshape((1,) * (y.ndim - 1) + (-1,))


def image_space(incoming: Bound, who: str, in_size: int, out_size: int) -> Vector:
    """What comes out of a map of the last axis. Raises SpaceError unless that has `in_size` entries."""
    shape = incoming.vector(who).space.shape  # pyright: ignore[reportAttributeAccessIssue]
    if shape[-1:] != (in_size,):
        raise SpaceError(f"{who} maps {in_size} entries of a last axis, but was given {incoming.space}")
    return Vector((*shape[:-1], out_size))


def check_last(x: Any, size: int, who: str) -> None:
    """Raises ValueError unless the last axis has so many entries."""
    if x.shape[-1:] != (size,):
        raise ValueError(f"{who} maps {size} entries of a last axis, but was given shape {x.shape}")


def check_raw(weight: Any, who: str) -> None:
    """Raises TypeError or ValueError unless a weight holds numbers that a matrix is computed from."""
    check_weight(weight, who, "(out, in)")
    if not isinstance(weight.geometry, Raw):
        raise ValueError(f"{who} takes a weight of a Raw geometry, such as AOL, and {weight.name} is none")


def check_slopes(activation: Any, who: str) -> None:
    """Raises ValueError unless an activation has slopes in [0, 1] and |φ(z)| ≤ |z|, entry by entry."""
    if type(activation) not in (ReLU, Tanh):
        name = type(activation).__name__
        raise ValueError(f"{who} needs slopes in [0, 1], of ReLU() or Tanh(): with {name} it can expand")


def check_square(out_size: int, in_size: int, who: str) -> None:
    """Raises ValueError unless a residual layer keeps the size."""
    if out_size != in_size:
        raise ValueError(
            f"{who} is residual, so that it keeps its size, and cannot map {in_size} entries to {out_size}"
        )


def raw(
    key: PRNGKeyArray, out_size: int, in_size: int, name: str, share: float, geometry: Raw, scale: float = 1.0
) -> Weight:
    """Fresh raw numbers: a random semi-orthogonal matrix of RMS→RMS norm `scale`."""
    return Weight(semi_orthogonal(key, out_size, in_size, scale), name, geometry, share=share)


def column(out_size: int, name: str, share: float, bias: bool) -> Weight | None:
    """A bias that is zero, if there is to be one."""
    return Weight(jnp.zeros((out_size, 1), jnp.float32), f"{name}.bias", COLUMN, share=share) if bias else None


def in_unit(array: Float[Array, "*batch m n"]) -> Float[Array, "*batch s l"]:
    """Raw numbers in float32 at least, lying wide, divided by a power of two that brings the largest into [1, 2).

    For what does not depend on their scale: then no square overflows or vanishes.
    """
    array = array.astype(at_least_float32(array.dtype))
    _, unit, nonzero = norms.scaled(array)
    x = array / jnp.where(nonzero, unit, 1)[..., None, None]
    return x if x.shape[-2] <= x.shape[-1] else x.mT


def exact_in_unit(array: Float[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "*batch s l"]:
    """The same in NumPy's float64, where it is exact for stored float32 and less. Raises ValueError for NaN and ∞."""
    array = finite(array)
    x = array if array.shape[-2] <= array.shape[-1] else array.mT
    _, exponent = np.frexp(abs(x).max(axis=(-2, -1), keepdims=True))
    return np.ldexp(x, 1 - exponent)


def finite(array: Float[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "*batch m n"]:
    """In float64. Raises ValueError for NaN and infinities."""
    array = np.asarray(array).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("the matrix holds NaN or infinite entries")
    return array
