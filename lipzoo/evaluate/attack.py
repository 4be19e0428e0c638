"""Attacks on classifiers in ℓ₂: how near to an input another class is found. Upper bounds of what is robust.

All work on batches: every image, restart and radius at once, in one compiled function.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Logits = Callable[[Float[Array, " n"]], Float[Array, " classes"]]
TINY = 1e-12


class Attacked(NamedTuple):
    """What attacks found for one image.

    **Attributes:**

    - `nearest`: the nearest input of another class that was found, and `distance`: how far it is in ℓ₂; the image
      itself and 0 where that is misclassified, infinite where none was found.
    - `probability`: the least probability of the true class that was found within each radius.
    """

    nearest: Float[Array | np.ndarray, "*batch n"]
    distance: Float[Array | np.ndarray, "*batch"]
    probability: Float[Array | np.ndarray, "*batch radii"]


@dataclasses.dataclass(frozen=True)
class Strength:
    """How hard attacks try.

    **Attributes:**

    - `steps`, `restarts`: of the projected gradient, for each radius; the first restart begins at the image.
    - `boundary_steps`: of the search for the nearest input of another class.
    - `box`: whether only images are tried, with pixels in [0, 1]. Certificates speak of all inputs.
    """

    steps: int = 40
    restarts: int = 3
    boundary_steps: int = 100
    box: bool = True


def margin(logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, ""]:
    """By how much the label's logit is above all others: above 0 where that is the class (Carlini & Wagner 2017)."""
    others = jnp.where(jnp.arange(logits.size) == label, -jnp.inf, logits)
    return logits[label] - others.max()


def attack(
    logits: Logits,
    image: Float[Array, " n"],
    label: Int[Array, ""],
    radii: Float[Array, " radii"],
    key: PRNGKeyArray,
    strength: Strength,
) -> Attacked:
    """The nearest of what both attacks find for one image."""
    keys = jax.random.split(key, (radii.size, strength.restarts))
    first = jnp.arange(strength.restarts) == 0
    climb = functools.partial(_projected_gradient, logits, image, label, strength=strength)
    found = jax.vmap(jax.vmap(climb, (None, 0, 0)), (0, 0, None))(radii, keys, first)
    there = _decoupled(logits, image, label, strength)
    points = jnp.concatenate([found[0].reshape(-1, image.size), there[None], image[None]])
    values = jax.vmap(logits)(points)
    fooled = jax.vmap(margin, (0, None))(values, label) <= 0
    distances = jnp.where(fooled, jnp.linalg.norm(points - image[None], axis=-1), jnp.inf)
    best = distances.argmin()
    own = jax.nn.softmax(logits(image))[label]
    probability = jnp.minimum(found[1].min(1), own)
    return Attacked(points[best], distances[best], jax.lax.cummin(probability))


def _projected_gradient(
    logits: Logits,
    image: Float[Array, " n"],
    label: Int[Array, ""],
    radius: Float[Array, ""],
    key: PRNGKeyArray,
    first: Bool[Array, ""],
    *,
    strength: Strength,
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """The point of least margin within the radius that was met, and the least probability of the label.

    Ascent on the negative margin with momentum (Madry et al. 2018, Dong et al. 2018): steps of 2.5 radii over the run,
    ever shorter, and back into the ball after each.
    """
    radius = radius * (1 - 1e-5)  # Whatever rounding does, what is found lies within.
    start = jax.random.normal(key, image.shape, image.dtype)
    start = jnp.where(first, 0.0, radius * start / jnp.linalg.norm(start))

    def step(carry: tuple[Array, ...], index: Array) -> tuple[tuple[Array, ...], None]:
        change, momentum, best, least, probability = carry
        value, gradient, chance = _margin_and_gradient(logits, image + change, label)
        better = value < least
        best, least = jnp.where(better, change, best), jnp.minimum(value, least)
        momentum = 0.75 * momentum - gradient / (jnp.linalg.norm(gradient) + TINY)
        size = 5 * radius / strength.steps * (1 - index / strength.steps)
        change = change + size * momentum / (jnp.linalg.norm(momentum) + TINY)
        change = _inside(image, change, radius, strength)
        return (change, momentum, best, least, jnp.minimum(chance, probability)), None

    start = _inside(image, start, radius, strength)
    begin = (start, jnp.zeros_like(image), start, jnp.asarray(jnp.inf), jnp.asarray(1.0))
    steps = jnp.arange(strength.steps, dtype=image.dtype)
    (last, _, best, least, probability), _ = jax.lax.scan(step, begin, steps)
    values = logits(image + last)
    best = jnp.where(margin(values, label) < least, last, best)
    return image + best, jnp.minimum(probability, jax.nn.softmax(values)[label])


def _decoupled(
    logits: Logits, image: Float[Array, " n"], label: Int[Array, ""], strength: Strength
) -> Float[Array, " n"]:
    """Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600): along the gradient, on a sphere that shrinks
    where the class is another one and grows where it is not. The nearest point of another class that was met, or the
    last point."""

    def step(carry: tuple[Array, ...], index: Array) -> tuple[tuple[Array, ...], None]:
        change, radius, best, nearest = carry
        value, gradient, _ = _margin_and_gradient(logits, image + change, label)
        size, fooled = jnp.linalg.norm(change), value <= 0
        nearer = fooled & (size < nearest)
        best, nearest = jnp.where(nearer, change, best), jnp.where(nearer, size, nearest)
        radius = jnp.where(fooled, jnp.minimum(radius, size) * 0.95, radius * 1.05)
        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * index / strength.boundary_steps)) / 2
        moved = change - rate * radius * 2 * gradient / (jnp.linalg.norm(gradient) + TINY)
        moved = moved * radius / (jnp.linalg.norm(moved) + TINY)
        return (_boxed(image, moved, strength), radius, best, nearest), None

    # The distance at which the class would change if the logits were linear.
    value, gradient, _ = _margin_and_gradient(logits, image, label)
    radius = jnp.clip(jnp.abs(value) / (jnp.linalg.norm(gradient) + TINY), 1e-4, 10.0)
    still = jnp.zeros_like(image)
    steps = jnp.arange(strength.boundary_steps, dtype=image.dtype)
    carry, _ = jax.lax.scan(step, (still, radius, still, jnp.asarray(jnp.inf)), steps)
    return image + jnp.where(jnp.isfinite(carry[3]), carry[2], carry[0])


def _margin_and_gradient(
    logits: Logits, x: Float[Array, " n"], label: Int[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, " n"], Float[Array, ""]]:
    """The margin, its gradient, and the label's probability."""

    def value(x: Array) -> tuple[Array, Array]:
        z = logits(x)
        return margin(z, label), jax.nn.softmax(z)[label]

    (least, chance), gradient = jax.value_and_grad(value, has_aux=True)(x)
    return least, gradient, chance


def _inside(
    image: Float[Array, " n"], change: Float[Array, " n"], radius: Float[Array, ""], strength: Strength
) -> Float[Array, " n"]:
    """The change brought back into the ball, and the image into the box: both are convex and hold the image, so the
    box, which comes last, only shortens what is changed."""
    change = change * jnp.minimum(1, radius / (jnp.linalg.norm(change) + TINY))
    return _boxed(image, change, strength)


def _boxed(image: Float[Array, " n"], change: Float[Array, " n"], strength: Strength) -> Float[Array, " n"]:
    return jnp.clip(image + change, 0, 1) - image if strength.box else change
