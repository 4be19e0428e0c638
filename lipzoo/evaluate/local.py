"""Certified radii around single inputs, where slopes are better known than everywhere."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from lipzoo.models import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.slopes import UNIT
from lipzoo.theory.steering import Steering

ROUNDS = 6
"""Balls that are tried around each input."""
NEAR = 0.02
"""Where the bracket of a radius is narrower than this fraction, it is not made narrower."""


@dataclasses.dataclass(frozen=True, eq=False)
class Near:
    """What is known of a network on a ball around one input.

    **Attributes:**

    - `logits`: in the middle, each off by at most `blur`.
    - `pairs`: Dⱼₖ, ℓ₂, for all inputs of the ball: |Δ(zⱼ - zₖ)| ≤ Dⱼₖ‖Δx‖₂ between any two of them.
    - `lipschitz`: the ℓ₂ → ℓ₂ constant there.
    """

    logits: Float[np.ndarray, " classes"]
    blur: float
    pairs: Float[np.ndarray, "classes classes"]
    lipschitz: float


def near(model: AbstractModule, x: Float[np.ndarray, " n"], reach: float, steering: Steering) -> Near:
    """Bounds of a model of vectors, of NumPy arrays, on the ball of ℓ₂ radius `reach` around x.

    The statement is about exact arithmetic, the middle included: what float64 rounds there is counted.

    **Raises:** SpaceError if a module has no bound around one input, NoEllipsoid if float64 has no room for numbers.
    """
    x = np.asarray(x, np.float64).ravel()
    size = float(np.linalg.norm(x) * (1 + 2.0**-40) + reach) / math.sqrt(x.size)
    around = Around(x, reach)
    domain = Bound.start(model.takes, size)  # pyright: ignore[reportArgumentType]
    end = model.spread(Ellipsoid(None, x.size, around), domain, steering.fresh())
    assert end.around is not None
    return Near(end.around.center, end.around.blur, end.pairs(), float(end.lipschitz))


def local_radius(
    model: AbstractModule,
    x: Float[np.ndarray, " n"],
    prediction: int,
    certain: float,
    steering: Steering,
    off: Callable[[float], float] = lambda reach: 0.0,
) -> float:
    """A radius, at least `certain`, within which no input has another largest logit than `prediction`.

    `off` says by how much what runs is off in differences of two logits, on a ball of this radius: margins are smaller
    by that.

    Where D(ε) is what holds on the ball of radius ε, no class changes within min(ε, min_j (z_y - zⱼ)/D_yj(ε)). The
    first grows with ε and the second falls: where they meet is sought by a few balls, between `certain` and what a ball
    of no size would give.
    """
    try:
        low, high = certain, _reached(near(model, x, 0.0, steering), prediction, off(0.0))
    except (ArithmeticError, np.linalg.LinAlgError):
        return certain
    high = min(high, max(certain, 100 * math.sqrt(x.size)))  # A network may be constant around the input.
    for _ in range(ROUNDS):
        if not low < high * (1 - NEAR):
            break
        middle = math.sqrt(max(low, high / 16) * high)
        try:
            reached = _reached(near(model, x, middle, steering), prediction, off(middle))
        except (ArithmeticError, np.linalg.LinAlgError):
            reached = 0.0
        low, high = max(low, min(middle, reached)), min(high, max(middle, reached))
    return low


def _reached(found: Near, prediction: int, off: float) -> float:
    """min_j (z_y - zⱼ)/D_yj, rounded down; of logits that roundings might order otherwise, 0."""
    margins = (found.logits[prediction] - found.logits) * (1 - 4 * UNIT) - 2 * found.blur - off
    margins[prediction] = math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        radii = np.where(margins > 0, margins / found.pairs[prediction], 0.0)
    return float(radii.min()) * (1 - 2.0**-50)
