"""Attention near one sequence: how far each head's output can move where every token moves by so much."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lipzoo.layers.rotary import ROTARY_BASE
from lipzoo.theory.balls import SURE_RADIUS, Balls, expit, log_sum_of_others, rms
from lipzoo.theory.slopes import UNIT
from lipzoo.theory.weight import Weight

Heads = Float[np.ndarray, "heads time size"]
Scores = Float[np.ndarray, "heads time time"]


class Known(NamedTuple):
    """What an attention is made of, in float64: matrices by head, upper bounds of their norms, and options."""

    q: Float[np.ndarray, "heads size d"]
    k: Float[np.ndarray, "heads size d"]
    v: Float[np.ndarray, "heads size d"]
    q_norm: Float[np.ndarray, " heads"]
    k_norm: Float[np.ndarray, " heads"]
    v_norm: Float[np.ndarray, " heads"]
    scale: float
    bias: Float[np.ndarray, "heads reach"] | None
    window: int
    rotary: bool
    qk_epsilon: float | None
    v_epsilon: float | None


class _Side(NamedTuple):
    """q, k or v at the given tokens, their norms, and how far they can be from there."""

    center: Heads
    size: Float[np.ndarray, "heads time"]
    radius: Float[np.ndarray, "heads time"]


def heads_of(weight: Weight, heads: int) -> Float[np.ndarray, "heads size d"]:
    """The heads of q, k or v in float64, however they are held."""
    array = np.asarray(weight.array, np.float64)
    return array.reshape(heads, -1, array.shape[-1])


def attention_near(known: Known, x: Balls) -> tuple[Float[np.ndarray, "time d"], Float[np.ndarray, "heads time"]]:
    """The heads' outputs, side by side, and how far in RMS norm each can be from there.

    With |q|, |k| the norms at the given tokens and δ how far each can be from there, a score moves by at most
    σ_tj = s(|q_t|δk_j + δq_t|k_j| + δq_tδk_j). So a weight p_j stays below p_je^σⱼ/(p_je^σⱼ + Σ_{i≠j} p_ie^-σᵢ),
    and above the same with all signs turned: let d_j be the larger of both distances. Then, with o = Σp_jv_j,

        ‖Σp'_jv'_j - o‖ = ‖Σp'_j(v'_j - v_j) + Σ(p'_j - p_j)(v_j - o)‖ ≤ min(Σp'_jδv_j, max δv_j) + min(Σd_j‖v_j - o‖,
        2·tanh(max σ/2)·max‖v_j - o‖),

    since ‖softmax(z + Δ) - softmax(z)‖₁ ≤ 2·tanh((max Δ - min Δ)/4).
    """
    q, k, v = (
        _side(x, known.q, known.q_norm, known.qk_epsilon),
        _side(x, known.k, known.k_norm, known.qk_epsilon),
        _side(x, known.v, known.v_norm, known.v_epsilon),
    )
    if known.rotary:
        q, k = (side._replace(center=_rotated(side.center)) for side in (q, k))
    distance = np.arange(len(x.center))[:, None] - np.arange(len(x.center))[None, :]
    seen = (distance >= 0) & (distance < (known.window or len(distance)))
    scores = known.scale * (q.center @ k.center.swapaxes(1, 2)) / q.center.shape[2]
    if known.bias is not None:
        scores = scores + known.bias[:, np.clip(distance, 0, known.bias.shape[1] - 1)]
    # Rounding moves scores too: products, turns of q and k, and the sum with a bias.
    added = 0.0 if known.bias is None else abs(known.bias).max()
    largest = known.scale * q.size[:, :, None] * k.size[:, None, :] + added
    sigma = (
        known.scale
        * (q.size[:, :, None] * k.radius[:, None, :] + q.radius[:, :, None] * (k.size + k.radius)[:, None, :])
        + UNIT * (8 * x.center.shape[1] ** 1.5 + 16 * len(x.center) + 400) * largest
    )
    weight, most, change = _weights(scores, sigma * SURE_RADIUS, seen)
    output = weight @ v.center
    apart = np.where(seen, rms(v.center[:, None, :, :] - output[:, :, None, :]), 0.0)
    steepest = np.where(seen, sigma, 0.0).max(2)
    values = np.minimum((most * v.radius[:, None, :]).sum(2), np.where(seen, v.radius[:, None, :], 0.0).max(2))
    moved = values + np.minimum((change * apart).sum(2), 2 * np.tanh(steepest / 2) * apart.max(2))
    rounding = UNIT * (4 * len(distance) + 100) * v.size.max(1, keepdims=True)
    return output.swapaxes(0, 1).reshape(len(distance), -1), (moved + rounding) * SURE_RADIUS


def _side(x: Balls, matrix: Heads, norm: Float[np.ndarray, " heads"], epsilon: float | None) -> _Side:
    """Wx by head, and divided by √(mean square + ε) if ε is given."""
    center = np.einsum("td,hsd->hts", x.center, matrix)
    rounding = UNIT * (2 * x.center.shape[1] ** 1.5 + 100) * norm[:, None] * rms(x.center)[None]
    radius = norm[:, None] * x.radius[None] + rounding
    if epsilon is None:
        return _Side(center, rms(center) + rounding, radius)
    least = np.maximum(rms(center) - radius, 0)
    center = center / np.sqrt((center**2).mean(2, keepdims=True) + epsilon)
    radius = np.minimum(radius / np.sqrt(least**2 + epsilon), 2.0) + 64 * UNIT
    return _Side(center, np.minimum(rms(center) + 64 * UNIT, 1.0), radius)


def _rotated(x: Heads) -> Heads:
    """Each pair of entries turned by the angle of its position, as in `lipzoo.layers.attend.rotate`."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * ROTARY_BASE ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([cos * left + sin * right, cos * right - sin * left], axis=-1)


def _weights(scores: Scores, sigma: Scores, seen: Bool[np.ndarray, "time time"]) -> tuple[Scores, Scores, Scores]:
    """The softmax, the most that each weight can be where scores move by σ, and the most that it can change.

    A weight is 1/(1 + e^-d), d its score less the logarithm of the sum of all other exponentials: kept as a logarithm,
    so that what is too small for a number by itself can still become large.
    """
    z = np.where(seen, scores, -np.inf)
    weight = expit(_odds(z, z))
    highest = np.minimum(expit(_odds(z + sigma, z - sigma)) * (1 + 1e-9) + 1e-14, 1.0)
    lowest = expit(_odds(z - sigma, z + sigma)) * (1 - 1e-9) - 1e-14
    change = np.maximum(highest - weight, weight - lowest) + 1e-14
    return weight, np.where(seen, highest, 0.0), np.where(seen, change, 0.0)


def _odds(one: Scores, others: Scores) -> Scores:
    """For each, itself less the logarithm of what the exponentials of all others sum up to: ∞ where there are none."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(one), -np.inf, one - log_sum_of_others(others))
