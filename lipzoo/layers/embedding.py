"""The table that tokens are looked up in."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lipzoo.layers.base import AbstractModule, check_axes
from lipzoo.theory.bound import Bound, Domain
from lipzoo.theory.numbers import namespace
from lipzoo.theory.space import Space, SpaceError, Symbols, Tokens
from lipzoo.theory.weight import Measure, Weight


class Embedding(AbstractModule):
    """token ↦ row of a table. Each row is a matrix of one column, so its RMS→RMS norm is its RMS norm."""

    deviates = True
    table: Weight

    @property
    def takes(self) -> Space:
        return Symbols(self.table.array.shape[0])

    def __call__(self, x: Int[Array, " time"]) -> Float[Array, "time d"]:
        if x.ndim != 1 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"an embedding takes one sequence of whole numbers, but was given shape {x.shape} of {x.dtype}: "
                "for a batch, jax.vmap the model"
            )
        return self.table.array[x, :, 0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(max row norm, 1): the certified function begins at the embedded tokens, which are its domain.

        Rows that run may be others; embedded tokens that are no rows are rounded as any input is.
        """
        check_axes(self.table, "an embedding", "(count, size, 1)")
        self.table.geometry.check_multiplied(self.table.name)
        count, size, _ = self.table.array.shape
        if incoming.space != Symbols(count):
            raise SpaceError(f"{self.table.name} takes {Symbols(count)}, but was given {incoming.space}")
        rows = measure(self.table)
        radius, tokens = namespace(rows).max(rows), Tokens(size)
        start = dataclasses.replace(Bound.start(tokens, radius), runs=incoming.runs)
        start = start.off(
            lambda runs: np.maximum(np.max(runs.difference(self.table)), runs.counted(lambda a: a.entered(radius)))
        )
        return dataclasses.replace(start, domain=Domain(tokens, radius, embedded=True))
