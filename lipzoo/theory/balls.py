"""Sequences near a given one: a ball around each token."""

import dataclasses

import numpy as np
from jaxtyping import Float

from lipzoo.theory.slopes import UNIT

SURE_RADIUS = 1 + 2.0**-40
"""What a radius is multiplied by, for what computing it has rounded."""


@dataclasses.dataclass(frozen=True, eq=False)
class Balls:
    """Tokens that a sequence of the set can have, at one place of a network.

    **Attributes:**

    - `center`: the tokens of the given sequence, in float64, all but exactly.
    - `radius`: how far in RMS norm each token can be from its center, what rounded there included.
    """

    center: Float[np.ndarray, "time size"]
    radius: Float[np.ndarray, " time"]

    @property
    def sizes(self) -> Float[np.ndarray, " time"]:
        """The largest RMS norm that each token can have."""
        return rms(self.center) + self.radius

    def moved(
        self,
        center: Float[np.ndarray, "time out"],
        radius: Float[np.ndarray, " time"],
        *,
        gain: float = 1.0,
        width: int = 0,
        depth: int = 1,
    ) -> "Balls":
        """The balls after a map, with what rounds in its centers.

        That is a map of at most the gain, of `depth` matrices no wider than `width`. Sums of n products in float64 are
        off by at most γₙ times those of absolute values, which are at most √n times as large as the matrix's norm says;
        what else is computed of an entry, by less than 100 units of roundoff.
        """
        width = max(width, self.center.shape[1], center.shape[1])
        unit = UNIT * (2 * width**1.5 + 100) * depth
        rounding = unit * (rms(center) + max(gain, 1.0) * self.sizes)
        return Balls(center, (radius + rounding) * SURE_RADIUS)


def rms(x: Float[np.ndarray, "*batch size"]) -> Float[np.ndarray, "*batch"]:
    """RMS norms along the last axis."""
    return np.sqrt((x**2).mean(-1))


def log_sum_of_others(logs: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch n"]:
    """For each entry of the last axis, the logarithm of the sum of the exponentials of all others, without a difference
    that would cancel: of those before it and those after it."""
    nothing = np.full((*logs.shape[:-1], 1), -np.inf)
    before = np.concatenate([nothing, np.logaddexp.accumulate(logs, axis=-1)[..., :-1]], axis=-1)
    after = np.concatenate([nothing, np.logaddexp.accumulate(logs[..., ::-1], axis=-1)[..., :-1]], axis=-1)
    return np.logaddexp(before, after[..., ::-1])


def expit(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """1/(1 + e^-x)."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))
