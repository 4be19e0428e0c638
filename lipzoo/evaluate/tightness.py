"""How tight bounds are: the largest gain that is found, of the whole and of each part, beside what is proved of it."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import Sequential
from lipzoo.models import GPT, MLP
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Space, Tokens
from lipzoo.theory.weight import Measure, weights

TURNS = 20
"""Rounds of the power iteration at each data point."""
CLIMBS = 60
"""Steps of the ascent that follows, over inputs and their changes."""
STRIDE = 0.1
"""The first step of the ascent, as a fraction of the input; the last is 0."""


class Tightness(NamedTuple):
    """Lower and upper bound of a Lipschitz constant, RMS → RMS: the largest gain found, and what is certified."""

    name: str
    found: float
    certified: float


def parts(model: AbstractModule) -> list[tuple[str, AbstractModule]]:
    """What a model is made of, one after the other: each layer with its activation, or each block."""
    if isinstance(model, MLP):
        return _named(model.body)
    if isinstance(model, GPT):
        blocks = [(f"blocks.{index}", model.stack.block(index)) for index in range(model.stack.depth)]
        return [*blocks, ("head", model.ends)]
    return _named(model) if isinstance(model, Sequential) else []


def _named(sequence: Sequential) -> list[tuple[str, AbstractModule]]:
    """Layers by the name of their first weight; those without weights by their kind."""
    names = [next((w.name for w in weights(layer)), type(layer).__name__) for layer in sequence.layers]
    return list(zip(names, sequence.layers, strict=True))


def tightness(
    model: AbstractModule, start: Bound, inputs: Float[Array, "batch ..."], measure: Measure, certified: float
) -> list[Tightness]:
    """Of the whole, certified as given, and of each part, by its bound and at what comes in there.

    `inputs` are examples, embedded ones of a GPT; their whole batch is attacked at once. Gains are found by power
    iteration on the Jacobian at the examples, then by ascent over the inputs of the domain.
    """
    bound, x = start, inputs
    whole = Sequential([module for _, module in parts(model)] or [model])
    last = whole.bound(start, measure).space
    rows = [Tightness("whole", largest_gain(whole, start.space, last, inputs, float(start.radius)), certified)]
    for name, module in parts(model):
        after = module.bound(Bound.start(bound.space, bound.radius), measure)
        if weights(module):
            found = largest_gain(module, bound.space, after.space, x, float(bound.radius))
            rows.append(Tightness(name, found, float(after.lipschitz)))
        bound, x = module.bound(bound, measure), jax.vmap(module)(x)
    return rows


def largest_gain(
    module: AbstractModule, takes: Space, gives: Space, inputs: Float[Array, "batch ..."], radius: float
) -> float:
    """The largest ‖f(x + v) - f(x)‖/‖v‖ that is found, over inputs of norm at most `radius`, from these on."""
    gains = np.asarray(_search(module, jnp.asarray(inputs), jnp.float32(radius), takes, gives), np.float64)
    return float(gains[np.isfinite(gains)].max(initial=0.0))


@eqx.filter_jit
def _search(
    module: AbstractModule, inputs: Float[Array, "batch ..."], radius: Float[Array, ""], takes: Space, gives: Space
) -> Float[Array, " batch"]:
    """For unit v, ‖J(x)v‖ has the gradient Jᵀd by v, d the direction of Jv that its norm measures: the v of norm 1 that
    is steepest along it is the next one of the power iteration. x stays, and then climbs."""

    def gain(x: Array, v: Array) -> Array:
        return _norms(gives, jax.jvp(module, (x,), (v,))[1]).max()

    def turn(carry: tuple[Array, Array], size: Array) -> tuple[tuple[Array, Array], Array]:
        x, v = carry
        value, (gx, gv) = jax.value_and_grad(gain, (0, 1))(x, v)
        x = x + size * radius * gx / jnp.maximum(_norms(takes, gx).max(), 1e-30)
        x = x * jnp.minimum(1, radius / jnp.maximum(_norms(takes, x), 1e-30))
        return (x, gv / jnp.maximum(_norms(takes, gv), 1e-30)), value

    def best(x: Array, key: Array) -> Array:
        v = jax.random.normal(key, x.shape, x.dtype)
        sizes = jnp.concatenate([jnp.zeros(TURNS), STRIDE * jnp.linspace(1.0, 0.0, CLIMBS)]).astype(x.dtype)
        return jax.lax.scan(turn, (x, v / _norms(takes, v)), sizes)[1].max()

    return jax.vmap(best)(inputs, jax.random.split(jax.random.key(0), len(inputs)))


def _norms(space: Space, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The RMS norm of a vector, or of each token; its slope at 0 is 0."""
    axes = -1 if isinstance(space, Tokens) else None
    return jnp.sqrt(jnp.mean(x**2, axis=axes, keepdims=True) + 1e-30)
