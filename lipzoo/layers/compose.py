"""Modules made of modules: one after the other, beside the identity, on every token."""

import abc
import math
from collections.abc import Iterable

import equinox as eqx
import jax
from jaxtyping import Array, Float, Shaped

from lipzoo.layers.base import AbstractModule, Cache, Mask, Position, check_module, check_shape
from lipzoo.theory.balls import Balls
from lipzoo.theory.bound import Bound, weighted_sum
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.space import Space, Tokens, Vector, example_shape
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure


class Sequential(AbstractModule):
    """Modules one after the other."""

    deviates = True
    layers: tuple[AbstractModule, ...]

    def __init__(self, layers: Iterable[AbstractModule]):
        self.layers = tuple(layers)
        for layer in self.layers:
            check_module(layer, "Sequential")

    @property
    def takes(self) -> Space | None:
        """What the first layer takes that knows; those before it keep the number of entries."""
        return next((space for layer in self.layers if (space := layer.takes) is not None), None)

    def __call__(self, x: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return self.masked(x, Mask())

    def masked(self, x: Shaped[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        for layer in self.layers:
            x = layer.masked(x, mask)
        return x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for layer in self.layers:
            incoming = layer.bound(incoming, measure)
        return incoming

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        for layer in self.layers:
            incoming = layer.near(incoming, measure)
        return incoming

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        for layer in self.layers:
            incoming, reach = layer.spread(incoming, reach, steering), layer.bound(reach, steering.measure)
        return incoming

    def extend(self, x: Shaped[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        for layer in self.layers:
            x, cache = layer.extend(x, cache, first)
        return x, cache


class AbstractResidual(AbstractModule):
    """A branch f beside the identity."""

    deviates = True
    branch: eqx.AbstractVar[AbstractModule]

    def __check_init__(self) -> None:
        check_module(self.branch, type(self).__name__)

    @abc.abstractmethod
    def combine(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output, from x and f(x)."""

    @property
    def takes(self) -> Space | None:
        return self.branch.takes

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.masked(x, Mask())

    def masked(self, x: Float[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        return self._beside(x, self.branch.masked(x, mask))

    def extend(self, x: Float[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        image, cache = self.branch.extend(x, cache, first)
        return self._beside(x, image), cache

    def _beside(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        check_shape(image, x.shape, "the identity beside a branch")  # NumPy would repeat the smaller one.
        return self.combine(x, image)


class ConvexResidual(AbstractResidual):
    """(1-α)x + αf(x) with 0 ≤ α ≤ 1: if f is 1-Lipschitz, so is this."""

    deviates = True
    branch: AbstractModule
    alpha: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"a convex residual needs 0 ≤ alpha ≤ 1, got {self.alpha}")

    def combine(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 - self.alpha) * x + self.alpha * image

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """((1-α)r + αr_f, (1-α)L + αL_f)."""
        alpha = float(self.alpha)
        return weighted_sum((1 - alpha, alpha), (incoming, self.branch.bound(incoming, measure)))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """The sum of both changes."""
        alpha = float(self.alpha)
        return incoming.plus(self.branch.spread(incoming, reach, steering), (1 - alpha, alpha))

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """The sum of both changes."""
        alpha, image = float(self.alpha), self.branch.near(incoming, measure)
        center = (1 - alpha) * incoming.center + alpha * image.center
        return incoming.moved(center, (1 - alpha) * incoming.radius + alpha * image.radius)


class Residual(AbstractResidual):
    """x + f(x)."""

    deviates = True
    branch: AbstractModule

    def combine(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        return x + image

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r + r_f, L + L_f)."""
        return weighted_sum((1.0, 1.0), (incoming, self.branch.bound(incoming, measure)))

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """The sum of both changes."""
        return incoming.plus(self.branch.spread(incoming, reach, steering), (1.0, 1.0))

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """The sum of both changes."""
        image = self.branch.near(incoming, measure)
        return incoming.moved(incoming.center + image.center, incoming.radius + image.radius)


class PerToken(AbstractModule):
    """A map of vectors on every token. Sequences are measured by their largest token, so the bound is the same."""

    deviates = True
    tokenwise = True
    module: AbstractModule

    def __check_init__(self) -> None:
        check_module(self.module, "PerToken")

    @property
    def takes(self) -> Space | None:
        return None if self.module.takes is None else Tokens(math.prod(example_shape(self.module.takes)))

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time out"]:
        return jax.vmap(self.module)(x)

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """One module after the other, so that what rounds in each is counted there."""
        if not isinstance(self.module, Sequential):
            return super().near(incoming, measure)
        return Sequential(PerToken(layer) for layer in self.module.layers).near(incoming, measure)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        size = incoming.tokens("PerToken").space.size  # pyright: ignore[reportAttributeAccessIssue]
        image = self.module.bound(incoming.to(Vector((size,))), measure)
        return image.to(Tokens(image.vector("PerToken", flat=True).space.size))  # pyright: ignore
