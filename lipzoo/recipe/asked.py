"""Caps for a Lipschitz constant that is asked for."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lipzoo.config.overrides import number
from lipzoo.constraints import WeightDecay
from lipzoo.recipe.constraint import CAP_FLAG
from lipzoo.recipe.recipe import CAPS, Recipe
from lipzoo.system.errors import UserError
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import format_power, round_digits
from lipzoo.theory.weight import Weight, cap_norm, map_weights, set_caps, weights

NEAR = 1e-3
"""How far below what is asked for caps may leave the bound, relative: they have six digits."""
TOLERANCE = 1e-7
"""Of the factor, relative."""
STEEPEST = 1e3
"""Logarithms of bounds above this are as good as infinite ones, which no root is sought from."""


def with_lipschitz(recipe: Recipe) -> Recipe:
    """The recipe with all its caps but the embedding's multiplied by one number, the largest with which the network is
    at most --lipschitz L-Lipschitz before training begins, whatever training does.

    So --sigma-max and --sigma-max-overrides say how caps compare. The a-priori bound rises with every cap, and is found
    from the caps alone. Caps that are as asked for already are left alone, so that a resumed run keeps its own.

    **Raises:** UserError if a constraint does not hold its caps, or no caps make such a network.
    """
    asked = recipe.constraint.lipschitz
    if not asked:
        return recipe
    whole = recipe.complete()
    model = without_arrays(whole.abstract_model())
    for weight in weights(model):
        constraint = whole.constraint.of(weight)
        if weight.geometry.bounded and (not constraint.guarantees or isinstance(constraint, WeightDecay)):
            raise UserError(
                f"--lipschitz {asked:g} needs a cap on {weight.name} that is held and can be chosen: "
                "use --constraint soft-cap, hard-cap, svd-cap, spectral-normalize or stiefel"
            )
    limit = math.log(asked)
    by_caps = functools.partial(log_bound, model)
    if limit + math.log1p(-NEAR) <= by_caps(whole) <= limit:
        return recipe
    factor = _largest(lambda factor: by_caps(scaled(whole, factor)) - limit, whole)
    if factor is None:
        least = format_power(by_caps(scaled(whole, _ends(whole)[0])) / math.log(10))
        raise UserError(
            f"--lipschitz {asked:g} is not to be had by caps: with the smallest ones the network can still be "
            f"{least}-Lipschitz; change its depth, its residual connections or its normalization"
        )
    return scaled(recipe, factor)


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """A recipe whose caps are multiplied by a factor, and rounded down to six digits."""
    constraint = recipe.constraint
    pairs = (pair.partition("=") for pair in constraint.sigma_max_overrides)
    caps: dict[str, Any] = {
        "sigma_max": _six_digits(factor * constraint.sigma_max),
        "sigma_max_overrides": tuple(f"{n}={_six_digits(factor * number(v, CAP_FLAG)):.9g}" for n, _, v in pairs),
    }
    return dataclasses.replace(recipe, constraint=dataclasses.replace(constraint, **caps))


def without_arrays(model: Any) -> Any:
    """A model's structure with zeros that take no memory, for bounds that look at caps alone."""

    def zeros(weight: Weight) -> Weight:
        return weight.with_array(np.broadcast_to(np.zeros((), np.float32), weight.array.shape))

    return map_weights(zeros, model)


def _six_digits(value: float) -> float:
    return float(round_digits(value, 6, up=False))


def log_bound(model: Any, recipe: Recipe) -> float:
    """log L by the caps that a recipe gives the weights of a model."""
    capped = set_caps(model, {weight.name: recipe.cap_of(weight) for weight in weights(model)})
    return float(capped.bound(Bound.start(model.takes, 1.0), cap_norm).log_lipschitz)


def _ends(recipe: Recipe) -> tuple[float, float]:
    """The factors that leave all caps within what is admitted."""
    values = [number(pair.partition("=")[2], CAP_FLAG) for pair in recipe.constraint.sigma_max_overrides]
    values.append(recipe.constraint.sigma_max)
    return 1.01 * CAPS[0] / min(values), 0.99 * CAPS[1] / max(values)


def _largest(excess: Callable[[float], float], recipe: Recipe) -> float | None:
    """The largest factor at which the bound exceeds nothing, in six digits; None if there is none.

    The logarithm of the bound is nearly a line over that of the factor, so Brent's method needs a few steps.
    """
    from scipy.optimize import brentq  # Slow to import.

    low, high = _ends(recipe)
    if excess(low) > 0:
        return None
    if excess(high) <= 0:
        return high

    def at(log_factor: float) -> float:
        return min(excess(math.exp(log_factor)), STEEPEST)

    factor = math.exp(float(brentq(at, math.log(low), math.log(high), xtol=TOLERANCE)))  # pyright: ignore
    while excess(factor) > 0:
        factor *= 1 - TOLERANCE
    return factor
