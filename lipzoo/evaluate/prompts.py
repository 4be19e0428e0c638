"""How far a GPT's next token can be moved: by any change of the embedded tokens, or by other tokens in their places."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lipzoo.certify.measured import ExactNorms
from lipzoo.layers.compose import Sequential
from lipzoo.models import GPT
from lipzoo.theory.balls import SURE_RADIUS, Balls, rms
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Tokens
from lipzoo.theory.weight import Measure

ROUNDS = 12
"""Balls that are tried to find the largest one in which the likeliest token stays the likeliest."""
MOST = 3000
"""Choices of places that are gone through."""


class Moved(NamedTuple):
    """What is proved of the logits of the next token, over all sequences of a set.

    **Attributes:**

    - `logits`: of the prompt itself, in float64.
    - `change`: how far each of them can move.
    - `range`: how far any difference of two can move; no more than that does the logarithm of a probability.
    """

    logits: Float[np.ndarray, " vocabulary"]
    change: Float[np.ndarray, " vocabulary"]
    range: float

    @property
    def kl(self) -> float:
        """How far in nats the prediction can move: KL(p ‖ p') ≤ range²/8 (Hoeffding)."""
        return self.range**2 / 8

    @property
    def probabilities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The prediction, and between what each probability stays: its odds against all others by e^±range."""
        odds = np.exp(self.logits - self.logits.max())
        p = odds / odds.sum()
        with np.errstate(over="ignore"):
            grow = np.exp(min(self.range, 700.0))
        return p, p / (p + (1 - p) * grow), np.minimum(p * grow / (p * grow + (1 - p)), 1.0)

    @property
    def certain(self) -> bool:
        """Whether the likeliest token stays the likeliest."""
        first, second = np.sort(self.logits)[::-1][:2]
        return bool(first - second > self.range)


class Prompt:
    """A GPT and the tokens that it is asked to go on from.

    `temperature` multiplies the logits, as in training. **Raises:** SpaceError where a part has no bound.
    """

    def __init__(self, model: GPT, tokens: Sequence[int], temperature: float = 1.0):
        self._model: GPT = jax.tree.map(np.asarray, model)
        self._measure: Measure = ExactNorms(lambda done: None)
        self._temperature = temperature
        table = np.asarray(self._model.embedding.table.array, np.float64)[..., 0]
        self._table, self.center = table, table[np.asarray(tokens)]

    def near(self, radius: ArrayLike) -> Moved:
        """Every embedded token moves by at most its radius, in RMS norm: by the sequence's own sizes and weights."""
        body = Sequential([self._model.stack, self._model.norm])
        x = body.near(Balls(self.center, np.asarray(radius, np.float64)), self._measure)
        return self._head(x.center[-1], float(x.radius[-1]))

    def anywhere(self, radius: float) -> Moved:
        """The same by the global bound, of all sequences that are as large or smaller than these can be."""
        start = Bound.start(Tokens(self.center.shape[1]), float((rms(self.center) + radius).max()))
        body = Sequential([self._model.stack, self._model.norm])
        gain, still = float(body.bound(start, self._measure).lipschitz), np.zeros(len(self.center))
        x = body.near(Balls(self.center, still), self._measure)
        return self._head(x.center[-1], float(x.radius[-1]) + radius * gain)

    def substituted(self, count: int) -> tuple[Moved, tuple[int, ...]]:
        """Any `count` tokens replaced by any others: what holds wherever they stand, and the worst places.

        **Raises:** ValueError if there are too many choices of places.
        """
        time = len(self.center)
        if not 1 <= count <= time or math.comb(time, count) > MOST:
            raise ValueError(
                f"{count} of {time} tokens can stand in {math.comb(time, max(count, 0)):,} places, of which at most "
                f"{MOST:,} are gone through: take a shorter prompt, or fewer substitutions"
            )
        farthest = np.array([rms(self._table - row).max() for row in self.center])
        found = []
        for places in itertools.combinations(range(time), count):
            radius = np.zeros(time)
            radius[list(places)] = farthest[list(places)]
            found.append((self.near(radius), places))
        worst = max(found, key=lambda pair: pair[0].range)
        change = np.max([moved.change for moved, _ in found], axis=0)
        return worst[0]._replace(change=change), worst[1]

    def reach(self, *, local: bool = True) -> float:
        """The largest ε found for which no change of every embedded token by up to ε moves the likeliest token."""
        holds = lambda e: (self.near(np.full(len(self.center), e)) if local else self.anywhere(e)).certain  # noqa: E731
        low, high = 0.0, 1e-6
        while holds(high) and high < 1e6:
            low, high = high, 4 * high
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def _head(self, hidden: Float[np.ndarray, " d"], radius: float) -> Moved:
        """The last matrix by its rows: ⟨w, Δx⟩ ≤ ‖w‖₂√d‖Δx‖, and for a difference of two rows their distance.

        No two rows are further apart than twice the largest distance from their mean. A soft cap of the logits does not
        expand, so that differences then move by no more than both logits together.
        """
        rows = np.asarray(self._model.head.weight.array, np.float64)
        logits = _logits(self._model, hidden)
        scale = float(self._model.config.final_scale) * math.sqrt(rows.shape[1]) * radius * SURE_RADIUS
        sizes = np.linalg.norm(rows, axis=1)
        change = sizes * scale
        apart = 2 * np.linalg.norm(rows - rows.mean(0), axis=1).max()
        if len(rows) <= 1000:
            gram = rows @ rows.T
            squares = np.diagonal(gram)[:, None] + np.diagonal(gram)[None] - 2 * gram
            apart = min(apart, math.sqrt(max(squares.max(), 0.0)) * (1 + 1e-9))
        if self._model.config.logit_softcap:
            apart = 2 * sizes.max()
        rounding = 2.0**-50 * rows.shape[1] ** 1.5 * (1 + float(abs(logits).max()))
        t = self._temperature
        return Moved(t * logits, t * (change + rounding), t * (float(apart) * scale + 2 * rounding))


def _logits(model: GPT, hidden: Float[np.ndarray, " d"]) -> Float[np.ndarray, " vocabulary"]:
    """The logits of a token as it comes from the last block and its norm, in float64."""
    logits = np.asarray(model.head.weight.array, np.float64) @ hidden * float(model.config.final_scale)
    cap = model.config.logit_softcap
    return cap * np.tanh(logits / cap) if cap else logits
