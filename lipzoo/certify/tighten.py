"""The smallest ellipsoid that is found for a feed-forward network: its L is at most that of the layers one by one."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lipzoo.models import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.numbers import log_up
from lipzoo.theory.slopes import NoEllipsoid
from lipzoo.theory.space import SpaceError, Vector
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight, map_weights, weights

STEPS = 60
"""Steps of the search for multipliers, at most."""
WORK = 1e12
"""Floating-point operations that it may take: about ten seconds of two CPU cores."""
RATE = 0.1
"""Learning rate of the search, which falls to 0."""
GAIN = 0.002
"""Where equal multipliers gain less than this fraction, none are sought: every singular value is at its cap."""
Objective = Callable[[Ellipsoid], Any]


def log_lipschitz(ellipsoid: Ellipsoid) -> Any:
    """What is made small by default: 2·log L."""
    return jnp.log(ellipsoid.top)


def mean_log_pair(ellipsoid: Ellipsoid) -> Any:
    """The mean of 2·log Dⱼₖ over pairs of outputs, for certified radii."""
    apart = ~np.eye(ellipsoid.size, dtype=bool)
    return 2 * jnp.mean(jnp.log(ellipsoid.pairs()[apart]))


def tightest(
    model: AbstractModule,
    start: Bound,
    measure: Measure,
    steps: int = STEPS,
    objective: Objective = log_lipschitz,
) -> list[tuple[Ellipsoid, Steering]]:
    """Ellipsoids of a model's output: with equal multipliers, and, if that gains anything, with the best ones found.

    `measure` must give upper bounds of norms in float64, and the model hold NumPy arrays. Each comes with its
    `Steering`, with which bounds around single inputs may begin.

    **Returns:** none where the model maps no vector to a vector, or float64 has no room for its numbers.
    """
    if not isinstance(start.space, Vector):
        return []
    found: list[tuple[Ellipsoid, Steering]] = []
    with contextlib.suppress(ArithmeticError, SpaceError, np.linalg.LinAlgError), np.errstate(all="ignore"):
        plain = Steering(measure)
        found.append((_spread(model, start, plain), plain))
        layerwise = model.bound(start, measure).vector("an ellipsoid")
        factor = np.sqrt(layerwise.space.size / start.space.size)  # pyright: ignore[reportAttributeAccessIssue]
        if steps and plain.used and found[0][0].lipschitz < (1 - GAIN) * float(layerwise.lipschitz) * factor:
            steering = Steering(measure, _sought(model, start, measure, plain.used, steps, objective))
            found.append((_spread(model, start, steering), steering))
    return [pair for pair in found if _known(pair[0])]


def _known(ellipsoid: Ellipsoid) -> bool:
    """Whether float64 has room for its constant."""
    try:
        return bool(np.isfinite(ellipsoid.lipschitz))
    except NoEllipsoid:
        return False


def smallest(layerwise: Bound, found: Sequence[float]) -> Bound:
    """The layerwise bound, or that of an ellipsoid if it is smaller. These are of ℓ₂ norms."""
    if not found:
        return layerwise
    first, last = layerwise.domain.space, layerwise.space
    factor = math.sqrt(first.size / last.size) * (1 + 2.0**-50)  # pyright: ignore[reportAttributeAccessIssue]
    log_lipschitz = log_up(min(found) * factor)
    if not log_lipschitz < layerwise.log_lipschitz:
        return layerwise
    return dataclasses.replace(layerwise, log_lipschitz=log_lipschitz)


def _spread(model: AbstractModule, start: Bound, steering: Steering) -> Ellipsoid:
    return model.spread(Ellipsoid(None, start.space.size), start, steering)  # pyright: ignore


def _sought(
    model: AbstractModule, start: Bound, measure: Measure, sizes: Sequence[int], steps: int, objective: Objective
) -> list[np.ndarray]:
    """Multipliers by gradient descent on their logarithms, in float32: whatever they are, they give a bound."""
    norms = {weight.name: measure(weight) for weight in weights(model)}
    steps = int(np.clip(WORK / (24 * sum(size**3 for size in sizes)), 4, steps))
    optimizer = optax.adam(optax.linear_schedule(RATE, 0.0, steps))

    def known(weight: Weight) -> Any:
        return norms[weight.name]

    @jax.jit
    def step(model: AbstractModule, steers: Any, state: Any) -> tuple[Any, Any, Any]:
        def loss(steers: Any) -> Any:
            steering = Steering(known, steers, lambda weight: weight.array)
            return objective(_spread(model, start, steering))

        value, gradient = jax.value_and_grad(loss)(steers)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(steers, updates), state, value

    model = map_weights(lambda w: w.with_array(jnp.asarray(w.array, jnp.float32)), model)
    steers = [jnp.zeros(size, jnp.float32) for size in sizes]
    best, least, state = steers, np.inf, optimizer.init(steers)
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):  # optax divides by whole numbers.
            after, state, value = step(model, steers, state)
        if float(value) < least:
            best, least = steers, float(value)
        steers = after
    return [np.asarray(steer).astype(np.float64) for steer in best]
