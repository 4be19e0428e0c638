"""Sizes of the queries, keys or values of attention."""

import math
from typing import NamedTuple

from lipzoo.theory.numbers import Scalar, log_times, log_up, namespace


class Side(NamedTuple):
    """Bounds of q, k or v, as logarithms: how much they change per change of the input, and how large they are."""

    gain: Scalar
    radius: Scalar


def side(norm: Scalar, log_radius: Scalar, epsilon: float | None) -> Side:
    """From the norm of a head's matrix, and from ε if its result is divided by √(mean square + ε)."""
    gain = log_up(norm, log_radius)
    if epsilon is None:
        return Side(gain, log_times(gain, log_radius))
    gain = log_times(gain, log_up(1 / math.sqrt(epsilon), log_radius))
    size = log_times(gain, log_radius)
    return Side(gain, namespace(size).minimum(size, 0.0))
