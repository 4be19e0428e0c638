"""What an optimizer is, and how transformations of optax become one."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import optax
from jaxtyping import Array

from lipzoo.optim.hyper import Hyper
from lipzoo.theory.weight import Weight, map_weights

Transform = optax.GradientTransformationExtraArgs
Spread = Callable[[Callable[..., Array]], Callable[..., Array]]
"""Makes of a function of matrices one that several devices share (see `lipzoo.devices.mesh.spread`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """A map of gradients to updates for a learning rate of -1. Fields are the options of a recipe that it takes.

    **Attributes:**

    - `modular`: whether updates are of unit norm, so that shares of the learning rate mean something: they are
      multiplied by them, and `--lr-overrides` acts.
    """

    modular: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def numbers(self) -> tuple[str, ...]:
        """The numbers of `Hyper` that it reads."""

    @abc.abstractmethod
    def transform(self, spread: Spread) -> Transform:
        """As optax has it. The weights are `Weight`s; `update` is also given `hyper` and `clock`, the steps so far."""

    def update_sup(self, weight: Weight) -> float:
        """The largest norm, in its geometry, of a weight's update: a theorem, or infinity where there is none."""
        return math.inf


def from_optax(make: Callable[..., optax.GradientTransformation], **numbers: str) -> Transform:
    """The transformation that `make` gives of its keyword arguments, each a number of `Hyper`, by name.

    Its state must not depend on them. For example `from_optax(optax.scale_by_lion, b1="beta1", b2="beta2")`.
    """

    def update(updates: Any, state: Any, params: Any = None, *, hyper: Hyper, **others: Any) -> tuple[Any, Any]:
        given = {name: jax.numpy.asarray(getattr(hyper, number)) for name, number in numbers.items()}
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power.
            return make(**given).update(updates, state, params)

    untyped: Any = update  # optax's type of it does not know arguments that have to be given.
    return Transform(make().init, untyped)


def scale_by_share() -> Transform:
    """Multiplies each update by its weight's share."""
    return _stateless(
        lambda updates, _, hyper: map_weights(lambda u: u.with_array(u.array * hyper.shares[u.name]), updates)
    )


def add_decay() -> Transform:
    """Adds λ·share·W to each update."""

    def add(updates: Any, params: Any, hyper: Hyper) -> Any:
        rates = {name: hyper.decay * share for name, share in hyper.shares.items()}
        return map_weights(lambda u, w: u.with_array(u.array + rates[w.name] * w.array), updates, params)

    return _stateless(add)


def _stateless(update: Callable[[Any, Any, Hyper], Any]) -> Transform:
    """A transformation of updates, given the weights and `hyper`, that remembers nothing."""

    def transform(updates: Any, state: Any, params: Any = None, *, hyper: Hyper, **others: Any) -> tuple[Any, Any]:
        return update(updates, params, hyper), state

    untyped: Any = transform
    return Transform(lambda params: optax.EmptyState(), untyped)
