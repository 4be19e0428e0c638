"""Adam without bias correction."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import optax

from lipzoo.optim.base import Optimizer, Spread, Transform, from_optax

EPSILON = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """m/(√v + 1e-12), with the decay of all optimizers here. The norm of its updates is not known."""

    @property
    def numbers(self) -> tuple[str, ...]:
        return "beta1", "beta2"

    def transform(self, spread: Spread) -> Transform:
        return scale_by_adam("beta1")


def scale_by_adam(beta1: str) -> Transform:
    """optax's Adam, told that it has run for ever, so that nothing is left to correct. `beta1` names β₁ in `Hyper`."""
    adam = from_optax(functools.partial(optax.scale_by_adam, eps=EPSILON), b1=beta1, b2="beta2")

    def init(params: Any) -> Any:
        state: Any = adam.init(params)
        return state._replace(count=jnp.full_like(state.count, jnp.iinfo(jnp.int32).max))

    return Transform(init, adam.update)
