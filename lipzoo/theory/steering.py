"""How an ellipsoid is taken through a network."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lipzoo.theory.ellipsoid import Ellipsoid, affine
from lipzoo.theory.norms import rms_factor
from lipzoo.theory.slopes import Matrix, round_up
from lipzoo.theory.weight import Measure, Weight


class Steering:
    """How an ellipsoid is taken through a network: norms, matrices, and the multipliers of what is no matrix.

    **Arguments:**

    - `measure`: norms of weights, for modules that know no more than these.
    - `steers`: log Λ of each map with slopes, in the order in which they are applied; all equal where there are none.
    - `array`: the array of a weight as it is computed with: in float64, or, where multipliers are sought, as it is.
    """

    def __init__(
        self,
        measure: Measure,
        steers: Sequence[Any] = (),
        array: Callable[[Weight], Any] = lambda weight: np.asarray(weight.array).astype(np.float64),
    ):
        self.measure = measure
        self.used: list[int] = []
        self._steers = steers
        self.array = array
        self._kept: dict[str, tuple[Weight, Any, float, Matrix | None]] = {}

    def fresh(self) -> "Steering":
        """For another pass through the same network: what was computed of its weights is kept."""
        again = Steering(self.measure, self._steers, self.array)
        again._kept = self._kept
        return again

    def steer(self, size: int) -> Any:
        """log Λ of the next map with slopes, which has so many entries."""
        self.used.append(size)
        return self._steers[len(self.used) - 1] if self._steers else 0.0

    def through(self, incoming: Ellipsoid, weight: Weight, bias: Weight | None = None) -> Ellipsoid:
        """The ellipsoid after a matrix and a bias of one column. That of an input as it is does not depend on which."""
        _, matrix, norm, _ = self._known(weight)
        offset = None if bias is None or incoming.around is None else np.asarray(self.array(bias)[:, 0])
        if incoming.matrix is not None or incoming.around is None or incoming.ball != 1:
            return incoming.through(matrix, norm, offset)
        return Ellipsoid(self._first(weight), matrix.shape[-2], affine(incoming.around, matrix, norm, offset))

    def _first(self, weight: Weight) -> Matrix:
        known, matrix, norm, first = self._known(weight)
        if first is None:
            first = Ellipsoid(None, matrix.shape[-1]).through(matrix, norm).full
            self._kept[weight.name] = (known, matrix, norm, first)
        return first

    def _known(self, weight: Weight) -> tuple[Weight, Any, float, Matrix | None]:
        kept = self._kept.get(weight.name)
        if kept is None or kept[0].array is not weight.array:
            norm = float(round_up(self.measure(weight) / rms_factor(*weight.array.shape[-2:])))  # ≥ σ₁.
            kept = self._kept[weight.name] = (weight, self.array(weight), norm, None)
        return kept
