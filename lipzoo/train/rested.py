"""Weights of a run that goes on with another schedule than it was started with."""

from typing import Any

import jax
import numpy as np

from lipzoo.recipe.lazy import every, lowest
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.weight import Weight, bare, exact_norm, map_weights


def rested(recipe: Recipe, model: Any) -> Any:
    """A bare model whose weights are at or below where their constraints leave them at the peak of the learning rate.

    A constraint that is applied every few steps has left room for the steps until it is again, as long as they were to
    be. Other schedules may make them longer.
    """

    def rest(weight: Weight) -> Weight:
        if every(recipe.constraint, recipe.optimizer, weight) == 1:
            return weight
        goal = lowest(recipe.constraint, recipe.optimizer, weight, recipe.optimizer.lr) * (1 - 1e-6)
        ratio = np.minimum(goal / np.asarray(exact_norm(weight)), 1.0)[..., None, None]
        array = (np.asarray(weight.array, np.float64) * ratio).astype(weight.array.dtype)
        return weight.with_array(jax.device_put(array, weight.array.sharding))

    return bare(map_weights(rest, recipe.dressed(model)))
