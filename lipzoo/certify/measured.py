"""Norms of weights in float64, each computed once, and the rows of a table that they make."""

from collections.abc import Callable, Sequence

import numpy as np

from lipzoo.theory.geometry import Geometry
from lipzoo.theory.weight import Weight, exact_norm

Place = tuple[int, tuple[int, ...], tuple[int, ...], str, Geometry]


def place_of(weight: Weight) -> Place:
    """Where the numbers of a weight lie in memory, how, and as what they are measured."""
    array = np.asarray(weight.array)
    where = array.__array_interface__["data"][0]
    return where, array.shape, array.strides, array.dtype.str, weight.geometry


class ExactNorms:
    """`exact_norm`, each computed once: a bound may look at a weight as a whole and head by head.

    `measured` is what was asked for. It is known again by the memory that it lies in and its geometry, whatever it is
    called, and kept, so that no other array can come to lie there.
    """

    def __init__(self, watch: Callable[[int], None] = lambda done: None):
        self.measured: list[Weight] = []
        self._norms: dict[Place, np.ndarray] = {}
        self.watch = watch

    def __call__(self, weight: Weight) -> np.ndarray:
        key = place_of(weight)
        if key not in self._norms:
            self.measured.append(weight)
            try:
                self._norms[key] = np.asarray(exact_norm(weight))
            except ValueError as error:
                raise ValueError(f"{weight.name}: {error}") from error
            self.watch(len(self._norms))
        return self._norms[key]


def table_rows(places: Sequence[Weight], measured: Sequence[Weight]) -> list[Weight]:
    """The weights of a table: those that the model holds, and what else was measured while its bound was computed."""

    def inside(part: Weight) -> bool:
        return any(part.name == place.name and np.shares_memory(part.array, place.array) for place in places)

    return [*places, *(part for part in measured if not inside(part))]
