"""Attacks on the bound that a module claims, for whoever writes modules of their own.

!!! example

    ```python
    found = lipzoo.testing.check_bound(MyLayer(Weight(array, "w")), lipzoo.space.Vector((8,)))
    found.gain, found.lipschitz  # what was found is below what is claimed, and how far
    ```
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.constraints import SpectralNormalize
from lipzoo.layers.base import AbstractModule, check_module
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Space, SpaceError, Symbols, Tokens, example_shape
from lipzoo.theory.weight import cap_norm, exact_norm, set_caps, weights

LENGTH = 6
"""Tokens of the sequences that are tried."""
ROUNDING = 1e-4
"""By what fraction float32 may put a value above what it is."""
STRIDE = 0.1
"""Steps of the ascent, as fractions of the size of what is moved."""
Point = tuple[Any, Float[Array, "..."], Float[Array, "..."]]
"""A module, an input, and a direction in which that is moved."""
Climb = Callable[[Point], tuple[Point, Array]]


@dataclasses.dataclass(frozen=True)
class Found:
    """The largest gain and output that were found, and what the module claims of them: lower and upper bounds."""

    gain: float
    lipschitz: float
    output: float
    radius: float

    def check(self, how: str) -> None:
        """Raises AssertionError if a claim does not hold."""
        for what, found, claimed in (("a gain", self.gain, self.lipschitz), ("an output", self.output, self.radius)):
            if not found <= claimed * (1 + ROUNDING):
                raise AssertionError(f"{how} found {what} of {found:.6g}, above the {claimed:.6g} that is claimed")


def check_bound(
    module: AbstractModule, space: Space | None = None, *, radius: float = 1.0, seeds: int = 3, steps: int = 40
) -> Found:
    """Tries to refute a module's `bound` for inputs of norm at most `radius`.

    - At random: 64 inputs and directions a seed, and 64 pairs of inputs.
    - By gradient ascent on the gain ‖J·v‖/‖v‖ and the size of the output, over input and direction.
    - By the same ascent with the weights moved too, each kept under the norm that it has: against the bound by caps.

    Inputs are in `space`, by default what the module itself says that it `takes`.

    **Returns:** the largest values of the first two, with the claims of the bound by exact norms.

    **Raises:** AssertionError, with both numbers, if a claim is refuted; TypeError if it is no module of this library;
    SpaceError if inputs have no norm.
    """
    check_module(module, "check_bound")
    space = space or module.takes
    if space is None or isinstance(space, Symbols):
        raise SpaceError(f"check_bound needs inputs that have a norm, not {space}: give another space")
    start = Bound.start(space, radius)
    claim = module.bound(start, exact_norm)
    attack = _Attack(space, claim.space, radius)
    found = [_random(attack, module, claim, seed) for seed in range(seeds)]
    found += _ascents(attack, module, claim, seeds, steps, still=True)
    if weights(module):
        held = set_caps(module, {w.name: float(np.max(exact_norm(w))) * (1 + 1e-6) for w in weights(module)})
        _ascents(attack, held, held.bound(start, cap_norm), seeds, steps, still=False)
    return Found(max(f.gain for f in found), found[0].lipschitz, max(f.output for f in found), found[0].radius)


@dataclasses.dataclass(frozen=True)
class _Attack:
    """Norms before and after a module, and inputs no larger than a radius."""

    takes: Space
    gives: Space
    radius: float

    def into_ball(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        size = _sizes(self.takes, x)
        return x * jnp.minimum(1, self.radius / jnp.maximum(size, 1e-30))

    def draw(self, key: PRNGKeyArray) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        shape = example_shape(self.takes, LENGTH)
        x, v = jax.random.normal(key, (2, *shape))
        return self.into_ball(x), v

    def values(self, point: Point) -> tuple[Array, Array]:
        """The gain and the size of the output."""
        module, x, v = point
        image, change = jax.jvp(lambda x: module(self.into_ball(x)), (x,), (v,))
        moved = jax.jvp(self.into_ball, (x,), (v,))[1]
        gain = _norm(self.gives, change) / jnp.maximum(_norm(self.takes, moved), 1e-30)
        return jnp.where(_norm(self.takes, moved) > 1e-6, gain, 0.0), _norm(self.gives, image)


def _sizes(space: Space, x: Float[Array, "..."]) -> Float[Array, "..."]:
    axes = -1 if isinstance(space, Tokens) else None
    return jnp.sqrt(jnp.mean(x**2, axis=axes, keepdims=True) + 1e-30)


def _norm(space: Space, x: Float[Array, "..."]) -> Float[Array, ""]:
    return _sizes(space, x).max()


def _random(attack: _Attack, module: AbstractModule, claim: Bound, seed: int) -> Found:
    points = jax.vmap(attack.draw)(jax.random.split(jax.random.key(seed), 64))
    gains, sizes = jax.vmap(lambda x, v: attack.values((module, x, v)))(*points)
    x = points[0]
    changes = jax.vmap(lambda x, y: _norm(attack.gives, module(x) - module(y)))(x[:-1], x[1:])
    distances = jax.vmap(lambda x, y: _norm(attack.takes, x - y))(x[:-1], x[1:])
    return _found(max(gains.max(), (changes / distances).max()), sizes.max(), claim, "a random input")


def _ascents(
    attack: _Attack, module: AbstractModule, claim: Bound, seeds: int, steps: int, *, still: bool
) -> list[Found]:
    climbers = [_climber(attack, place, still=still) for place in range(2)]  # The gain, and the output.
    how = "gradient ascent on inputs" if still else "gradient ascent on weights and inputs"
    return [
        _found(
            _top(climbers[0], module, attack, seed, steps), _top(climbers[1], module, attack, seed, steps), claim, how
        )
        for seed in range(seeds)
    ]


def _top(climb: Climb, module: AbstractModule, attack: _Attack, seed: int, steps: int) -> float:
    point: Point = (module, *attack.draw(jax.random.key(seed + 1000)))
    best = 0.0
    for _ in range(steps):
        point, value = climb(point)
        best = max(best, float(value))
    return best


def _climber(attack: _Attack, place: int, *, still: bool) -> Climb:
    """One step uphill of the gain (0) or the output (1), and the value before it."""

    @eqx.filter_jit
    def climb(point: Point) -> tuple[Point, Array]:
        value, gradient = eqx.filter_value_and_grad(lambda point: attack.values(point)[place])(point)
        module, x, v = jax.tree.map(_uphill, eqx.filter(point, eqx.is_inexact_array), gradient)
        module = point[0] if still else eqx.combine(module, point[0]).project(SpectralNormalize())
        return (module, attack.into_ball(x), v / _norm(attack.takes, v)), value

    return climb


def _uphill(x: Float[Array, "..."], gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    size = lambda y: jnp.sqrt(jnp.mean(y**2) + 1e-30)  # noqa: E731
    return x + STRIDE * (size(x) + 1e-3) / size(gradient) * gradient


def _found(gain: Any, output: Any, claim: Bound, how: str) -> Found:
    found = Found(float(gain), float(claim.lipschitz), float(output), float(claim.radius))
    found.check(how)
    return found
