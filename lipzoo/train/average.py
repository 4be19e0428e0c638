"""The mean of a run's weights, which lies beside them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from lipzoo.constraints import SpectralNormalize
from lipzoo.constraints.seal import seal
from lipzoo.optim.hyper import Number
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.weight import Weight, bare, map_weights


def blend(average: Any, model: Any, decay: Number, clock: Int[Array, ""]) -> Any:
    """a ← a + c(w - a), c = (1-d)/(1-dᵗ), at step t = `clock` + 1: the mean of all weights so far by dᵗ⁻ⁱ.

    By induction aₜ = Σᵢ dᵗ⁻ⁱwᵢ/Σᵢ dᵗ⁻ⁱ over i from 1 to t: c₁ = 1, and (1-c)/(1-dᵗ⁻¹) = d/(1-dᵗ). It needs no
    correction for its start, and since it is a mean and norms are convex, its norms are at most the largest that the
    weights ever had: means of weights under their caps are under their caps, but for rounding.
    """
    log = jnp.log(decay)
    fraction = jnp.minimum((1 - decay) / -jnp.expm1((clock + 1).astype(jnp.float32) * log), 1)
    return map_weights(lambda a, w: a.with_array(a.array + fraction * (w.array - a.array)), average, model)


def capped(recipe: Recipe, average: Any) -> Any:
    """The mean with what rounding has lifted above a cap brought back under it, as a checkpoint's weights are.

    Sealed in float64 where the recipe seals; else, under each cap that is guaranteed, divided by an upper bound.
    """
    dressed = recipe.dressed(average)
    if recipe.constraint.seal:
        return bare(seal(dressed))

    def divided(weight: Weight) -> Weight:
        return SpectralNormalize().apply(weight) if recipe.constraint.of(weight).guarantees else weight

    return bare(map_weights(divided, dressed))
