"""Images inside networks: arrays (height, width, channels), rearranged without a change of norm.

An image is one flat vector, measured by the RMS norm of all of its entries, so that a permutation of entries is an
isometry, and dropping or repeating none of them costs nothing. Channels come last, where a matrix of channels is one
product for all pixels.
"""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.linear import image_shape
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.space import Space, SpaceError, Vector
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure

Border = Literal["zero", "circular"]


class ChannelsLast(AbstractModule):
    """Pixels in one vector, or channels first, as data have them → (height, width, channels): a permutation."""

    deviates = True
    channels: int = eqx.field(static=True)
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    @property
    def takes(self) -> Space:
        return Vector((self.channels * self.height * self.width,))

    def __call__(self, x: Float[Array, "*pixels"]) -> Float[Array, "height width channels"]:
        return x.reshape(self.channels, self.height, self.width).transpose(1, 2, 0)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same."""
        incoming.vector("ChannelsLast", self.takes.size)  # pyright: ignore[reportAttributeAccessIssue]
        return incoming.to(Vector((self.height, self.width, self.channels)))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """The same, its entries elsewhere."""
        order = np.arange(incoming.size).reshape(self.channels, self.height, self.width).transpose(1, 2, 0)
        return incoming.permuted(order.reshape(-1))


class ChannelsFirst(AbstractModule):
    """(height, width, channels) → (channels, height, width), as other libraries have images: a permutation."""

    deviates = True

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "channels height width"]:
        return x.transpose(2, 0, 1)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same."""
        height, width, channels = image_shape(incoming, "ChannelsFirst")
        return incoming.to(Vector((channels, height, width)))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """The same, its entries elsewhere."""
        order = np.arange(incoming.size).reshape(reach.space.shape)  # pyright: ignore[reportAttributeAccessIssue]
        return incoming.permuted(order.transpose(2, 0, 1).reshape(-1))


class Crop(AbstractModule):
    """The `height`×`width` pixels of an image from the row `top` and the column `left` on; all others are dropped.

    An ℓ₂ norm does not grow. The RMS is taken over fewer entries: n instead of N, and grows by √(N/n) at most.
    """

    deviates = True
    top: int = eqx.field(static=True)
    left: int = eqx.field(static=True)
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ValueError(f"a crop needs a place inside the image and at least one pixel, got {self}")

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "rows columns channels"]:
        bottom, right = self.top + self.height, self.left + self.width
        if x.shape[0] < bottom or x.shape[1] < right:
            raise ValueError(f"a crop up to the pixel {bottom}×{right} was given an image of {x.shape[0]}×{x.shape[1]}")
        return x[self.top : bottom, self.left : right]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(√(N/n)·r, √(N/n)·L)."""
        height, width, channels = image_shape(incoming, "Crop")
        if height < self.top + self.height or width < self.left + self.width:
            raise SpaceError(f"a crop of {self.height}×{self.width} pixels does not lie in {incoming.space}")
        root = math.sqrt(height * width / (self.height * self.width)) * (1 + 2.0**-50)
        return incoming.scale(root).to(Vector((self.height, self.width, channels)))


class Patches(AbstractModule):
    """Squares of `size`×`size` pixels as the channels of one: (h, w, c) → (h/p, w/p, p²c), a permutation.

    With a `Pointwise` after it, it is a convolution whose stride is its kernel. Also called space-to-depth.
    """

    deviates = True
    size: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "rows columns features"]:
        height, width, _ = x.shape
        if height % self.size or width % self.size:
            raise ValueError(f"patches of {self.size}×{self.size} pixels do not divide an image of {height}×{width}")
        return _squares(x, self.size)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same."""
        height, width, channels = image_shape(incoming, "Patches")
        p = self.size
        if height % p or width % p:
            raise SpaceError(f"patches of {p}×{p} pixels do not divide {incoming.space}")
        return incoming.to(Vector((height // p, width // p, p * p * channels)))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """The same, its entries elsewhere."""
        order = np.arange(incoming.size).reshape(reach.space.shape)  # pyright: ignore[reportAttributeAccessIssue]
        return incoming.permuted(_squares(order, self.size).reshape(-1))


def _squares(x: Any, p: int) -> Any:
    height, width, channels = x.shape
    squares = x.reshape(height // p, p, width // p, p, channels).transpose(0, 2, 1, 3, 4)
    return squares.reshape(height // p, width // p, p * p * channels)


class Shift(AbstractModule):
    """Moves a fraction of the channels by one pixel: a quarter of them each down, up, right and left.

    So that matrices of channels alone mix neighbours (Wu et al. 2018, arXiv 1711.08141; LipNeXt, arXiv 2601.18513). The
    last of the channels move. What comes in over the border is 0, or with `circular` what left at the other side.

    Every output entry is an input entry or 0, and no input entry is in two outputs: ‖Sx‖ ≤ ‖x‖.
    """

    deviates = True
    fraction: float = eqx.field(static=True, default=0.5)
    border: Border = eqx.field(static=True, default="zero")

    def __check_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"the fraction of channels that move must be above 0 and at most 1, got {self.fraction}")
        if self.border not in ("zero", "circular"):
            raise ValueError(f"the border must be zero or circular, got {self.border!r}")

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        quarter = round(x.shape[-1] * self.fraction) // 4
        still, *parts = jnp.split(x, [x.shape[-1] - count * quarter for count in (4, 3, 2, 1)], axis=-1)
        moves = ((0, 1), (0, -1), (1, 1), (1, -1))
        moved = [self._move(part, axis, by) for part, (axis, by) in zip(parts, moves, strict=True)]
        return jnp.concatenate([still, *moved], axis=-1)

    def _move(self, x: Float[Array, "height width part"], axis: int, by: int) -> Float[Array, "height width part"]:
        """Entry i goes to i + by."""
        if self.border == "circular":
            return jnp.roll(x, by, axis)
        inside = jax.lax.slice_in_dim(x, max(-by, 0), x.shape[axis] - max(by, 0), axis=axis)
        margin = [(0, 0)] * 3
        margin[axis] = (max(by, 0), max(-by, 0))
        return jnp.pad(inside, margin)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same."""
        image_shape(incoming, "Shift")
        return incoming
