"""By how much an attention is off as it runs: its own products, its softmax, and other weights."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lipzoo.layers.normalization import normalization_error
from lipzoo.theory.numbers import Scalar
from lipzoo.theory.products import gamma
from lipzoo.theory.runs import Arithmetic, Runs
from lipzoo.theory.weight import Measure, Weight

Heads = Float[np.ndarray, " heads"]
FLOAT32 = 2.0**-24
"""u of float32."""
LARGEST_LOGIT = 2.0**120
"""Logits below this do not overflow, nor do the sums that they come from."""


@dataclasses.dataclass(frozen=True)
class Side:
    """What is known of q, k or v, head by head: RMS norms of what is meant, and how far what runs is from that."""

    size: Heads
    error: Heads

    @property
    def running(self) -> Heads:
        """How large what runs can be."""
        return self.size + self.error


def side(weight: Weight, radius: Scalar, epsilon: float | None, rotated: bool, runs: Runs, measure: Measure) -> Side:
    """Wᵢx for each head, divided by √(mean square + ε) where ε is given, and rotated.

    A division by at least √ε multiplies what it is given by at most 1/√ε, errors too. Angles are those that the network
    computes: rotations by any angles are rotations. Their sines and cosines are off by κ and rounded, and so are two
    products and their sum: an entry is off by at most (κ + γ₃)(|x| + |x'|), a pair by √2 times √2 of its norm.
    """
    size, width = np.asarray(measure(weight)) * radius, weight.array.shape[-2]
    error = np.asarray(runs.product(weight, radius, measure)) + 0 * size
    if epsilon is not None:
        overflow = runs.overflow(size + error, width)
        size, error = np.minimum(size / math.sqrt(epsilon), 1.0), np.minimum(error / math.sqrt(epsilon), 2.0)
        error = error + normalization_error(runs, width, epsilon, np.minimum(size + error, 1.0)) + overflow
    if rotated:
        turned = runs.counted(lambda a: 2 * (a.functions.angle + a.rounded(3, 1.0)))
        error = error + turned * (size + error) + runs.counted(lambda a: 6 * a.smallest)
    return Side(size, error + runs.overflow(size + error, width))


def attention_error(
    parts: Sequence[Weight],
    epsilons: Sequence[float | None],
    rotary: bool,
    scale: float,
    bias: Weight | None,
    radius: Scalar,
    runs: Runs,
    measure: Measure,
) -> tuple[Heads, Heads]:
    """How large the heads' outputs can be, for tokens up to `radius`, and by how much they are off.

    `parts` are the heads' maps to q, k and v, with the ε that each is normalized with; `bias` is added to logits.
    """
    turned = rotary, rotary, False
    q, k, v = (
        side(weight, radius, epsilon, rotated, runs, measure)
        for weight, epsilon, rotated in zip(parts, epsilons, turned, strict=True)
    )
    offset = 0.0, 0.0
    if bias is not None:
        added = runs.counted(lambda a: float(np.max(abs(np.asarray(bias.array)))))
        offset = float(added), float(np.max(runs.difference(bias)))
    return v.size, _heads_error(q, k, v, scale, parts[0].array.shape[-2], offset, runs)


def _heads_error(q: Side, k: Side, v: Side, scale: float, width: int, offset: tuple[float, float], runs: Runs) -> Heads:
    """By how much a head's output is off at most, for the tokens that it is given.

    The logits of a query are off by at most σ = s(qe_k + e_qk + e_qe_k), by what is added to them, and by their
    roundings. So the ℓ₁ distance of the weights is at most 2·tanh(σ/2) (see `Attention.bound`), of which each entry is
    computed to within η of itself. It is at most 2, too, but for the roundings of a sum of T and of a division, since
    weights are divided by their own sum. Values are off by e_v, and their sum, of T terms, by γ_T.

    `width` is that of a head; `offset` the largest entry of what is added to logits, and of what that is off by.
    """
    added, moved = offset
    sigma = scale * (q.size * k.error + q.error * k.size + q.error * k.error) + moved
    size = scale * q.running * k.running
    largest = np.maximum(scale, 1.0) * width * q.running * k.running + added + moved
    known = (largest < LARGEST_LOGIT) & np.isfinite(q.error + k.error + v.error)
    rounding = runs.counted(lambda a: _logits(a, width, size, added + moved))
    rounding = rounding + runs.counted(lambda a: 4 * a.smallest * scale * (q.running + k.running + 4))  # What vanishes.
    eta = runs.counted(lambda a: _weights(a, runs.tokens, size + rounding + added + moved))
    most = 2 + runs.counted(lambda a: 2 * gamma(runs.tokens + 4, max(a.total, FLOAT32)) + 2 * a.unit)
    weights = np.minimum(2 * np.tanh(np.minimum((sigma + rounding) / 2, 40.0)) + eta, most)
    summed = runs.counted(lambda a: a.summed(runs.tokens))
    error = v.error + weights * v.running + summed * (1 + weights) * v.running
    vanished = runs.counted(lambda a: 2 * (runs.tokens + 1) * a.smallest)
    error = error + vanished + runs.rounded(1, (1 + weights) * v.running + error)
    return error + runs.counted(lambda a: np.where(known, 0.0, math.inf) + a.holds(scale / width))


def _logits(a: Arithmetic, width: int, size: Heads, added: float) -> Heads:
    """The sum of d products is off by γ_d·|q||k|, at most γ_d·d‖q‖‖k‖; s/d is rounded, and so are its product with that
    and the sum with what is added, in float32 at least, and the result to float32."""
    unit = max(a.total, FLOAT32)
    return a.summed(width) * size + gamma(4, unit) * (1 + a.summed(width)) * (size + added) + 4 * a.smallest


def _weights(a: Arithmetic, tokens: int, largest: Heads) -> Heads:
    """η. The softmax is computed in float32, from logits between ±`largest`.

    The difference to the largest logit is rounded, which multiplies its exponential by at most e^(2u·largest); with
    exp's own error the numerators are off by a factor between 1-a and 1+a. A weight is one of them over the sum of T:
    off by (1+a)/(1-a) ≤ e^(2.2a), for a ≤ 1/2, and by γ of T+2 roundings, then rounded as values are. What vanishes
    does so beside a sum of about 1 at least.
    """
    unit = max(a.total, FLOAT32)
    off = (1 + a.functions.exp) * np.exp(np.minimum(2 * unit * largest, 1.0)) - 1
    grown = np.exp(2.2 * off) * (1 + gamma(tokens + 2, unit)) * (1 + gamma(1, a.unit)) - 1
    return np.where(off < 0.5, grown + 4 * tokens * a.smallest, math.inf)
