"""From images to sequences of their pixels, and from sequences to one vector."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule, check_column
from lipzoo.layers.linear import image_shape
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import log_up
from lipzoo.theory.space import Tokens, Vector
from lipzoo.theory.weight import Measure, Weight


class Offset(AbstractModule):
    """x + b for an image x, with a vector b of one entry for each of its entries: tells pixels apart by their place."""

    deviates = True
    offset: Weight

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        return x + self.offset.array.reshape(x.shape)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r + ‖b‖, L)."""
        image_shape(incoming, self.offset.name)
        check_column(self.offset, incoming.space.size)  # pyright: ignore[reportAttributeAccessIssue]
        image = incoming.shift(measure(self.offset))
        return image.off(lambda runs: runs.plus(0.0, self.offset, incoming.radius, measure))


class AsTokens(AbstractModule):
    """An image (height, width, channels) as the sequence of its pixels.

    An image is measured by the RMS over all entries, a sequence by its largest token, which is at most √T times that of
    all T: so a change of one pixel is told in full.
    """

    deviates = True

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "time channels"]:
        return x.reshape(-1, x.shape[-1])

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(√T·r, √T·L)."""
        height, width, channels = image_shape(incoming, "AsTokens")
        root = log_up(float(height * width) ** 0.5, incoming.log_radius)
        return incoming.grow(root, root).to(Tokens(channels))


class MeanToken(AbstractModule):
    """The mean of a sequence of `length` tokens, whose norm is at most that of the largest."""

    deviates = True
    length: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "time channels"]) -> Float[Array, " channels"]:
        if len(x) != self.length:
            raise ValueError(f"the mean of {self.length} tokens was given {len(x)}")
        return jnp.mean(x, axis=0)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same. What runs rounds T - 1 sums and a quotient, whose divisor is exact."""
        size = incoming.tokens("MeanToken").space.size  # pyright: ignore[reportAttributeAccessIssue]
        return incoming.to(Vector((size,))).off(lambda runs: runs.rounded(self.length + 1, incoming.radius))
