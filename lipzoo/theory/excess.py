"""How far above σ₁ the upper bound of `lipzoo.theory.norms.gram_norm` can be, rounding at its worst."""

import math
from collections.abc import Sequence

from jaxtyping import DTypeLike

from lipzoo.theory.products import at_least_float32, gamma, gram_terms, unit_roundoff


def largest_gram_excess(shape: Sequence[int], dtype: DTypeLike, squarings: int) -> float:
    """By how much `gram_norm` exceeds σ₁, relative, at most, for any matrix: what rounding may do at its worst.

    In the notation of `gram_norm`, and with ‖A‖_F² ≤ s‖A‖²: what is computed has ‖Qₖ₊₁‖ ≤ (1 + sγ_s)‖Pₖ‖², and what is
    added for its error is at most sγ_s‖Pₖ‖², inflated. So where a stage ends at most y times too high, the one before
    ends at most √(y(1 + sγ) + sγ') times too high; the last begins with ‖Q‖_F ≤ √s‖Q‖. Each has a few roundings more.
    """
    size, u = min(shape[-2:]), unit_roundoff(at_least_float32(dtype))

    def before(excess: float, terms: int) -> float:
        error = size * gamma(terms, u)
        added = error * math.exp((terms + size + 2) * u) * (1 + error)
        return math.sqrt(excess * (1 + error) + added) * (1 + 16 * u)

    excess = math.sqrt(size) * math.exp((size**2 + 8) * u)
    for _ in range(squarings):
        excess = before(excess, size)
    return before(excess, gram_terms(shape)) * (1 + 32 * u) - 1
