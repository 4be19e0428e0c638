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
from lipzoo.theory.balls import SURE_RADIUS, Balls, expit, log_sum_of_others, rms
from lipzoo.theory.bound import Bound
from lipzoo.theory.slopes import UNIT
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
        odds = self.logits - log_sum_of_others(self.logits)
        low, high = expit(odds - self.range) * (1 - 1e-9), expit(odds + self.range) * (1 + 1e-9)
        return expit(odds), low, np.minimum(high, 1.0)

    @property
    def certain(self) -> bool:
        """Whether the likeliest token stays the likeliest."""
        if len(self.logits) == 1:
            return True
        first, second = np.sort(self.logits)[::-1][:2]
        return bool(first - second > self.range)


class Prompt:
    """A GPT and the tokens that it is asked to go on from.

    `temperature` multiplies the logits, as in training.

    **Raises:** ValueError if that is not positive, if the prompt is empty or of several documents, which are masked
    from each other, or if the head has a bias; SpaceError where a part has no bound.
    """

    def __init__(self, model: GPT, tokens: Sequence[int], temperature: float = 1.0):
        if not 0 < temperature < math.inf:
            raise ValueError(f"the temperature must be positive and finite, got {temperature}")
        separator = model.config.separator
        if not len(tokens) or (separator >= 0 and separator in list(tokens)[1:]):
            raise ValueError("a prompt has at least one token, and is of one document")
        if model.head.bias is not None:
            raise ValueError("bounds around a prompt are of heads without a bias")
        self._model: GPT = jax.tree.map(np.asarray, model)
        self._measure: Measure = ExactNorms()
        self._temperature = temperature
        table = np.asarray(self._model.embedding.table.array, np.float64)[..., 0]
        self._table, self.center = table, table[np.asarray(tokens)]

    def near(self, radius: ArrayLike) -> Moved:
        """Every embedded token moves by at most its radius, in RMS norm: by the sequence's own sizes and weights."""
        if not (np.asarray(radius) >= 0).all():
            raise ValueError("the radii of tokens must be at least 0")
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
        """Any `count` tokens replaced by any others (but one that ends a document): what holds wherever they stand, and
        the worst places.

        **Raises:** ValueError if there are too many choices of places.
        """
        time = len(self.center)
        if not 1 <= count <= time or math.comb(time, count) > MOST:
            raise ValueError(
                f"{count} of {time} tokens can stand in {math.comb(time, max(count, 0)):,} places, of which at most "
                f"{MOST:,} are gone through: take a shorter prompt, or fewer substitutions"
            )
        table = np.delete(
            self._table, [self._model.config.separator] if self._model.config.separator >= 0 else [], axis=0
        )
        farthest = np.array([rms(table - row).max(initial=0.0) for row in self.center])
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
        rest = rows - rows.mean(0)
        apart = 2 * np.linalg.norm(rest, axis=1).max()
        if len(rows) <= 1000:
            gram = rest @ rest.T
            squares = np.diagonal(gram)[:, None] + np.diagonal(gram)[None] - 2 * gram
            squares = max(squares.max(), 0.0) + 16 * (rows.shape[1] + 4) * UNIT * np.diagonal(gram).max()
            apart = min(apart, math.sqrt(squares))
        apart = float(apart) * (1 + 2.0**-40) + 8 * UNIT * sizes.max()  # Of the mean that is taken away.
        if self._model.config.logit_softcap:
            apart = 2 * float(sizes.max())
        size = float(np.linalg.norm(hidden)) * float(sizes.max()) * abs(float(self._model.config.final_scale))
        rounding = UNIT * (4 * rows.shape[1] + 100) * (size + float(abs(logits).max()))
        t = self._temperature
        return Moved(t * logits, t * (change + rounding), t * (apart * scale + 2 * rounding))


def _logits(model: GPT, hidden: Float[np.ndarray, " d"]) -> Float[np.ndarray, " vocabulary"]:
    """The logits of a token as it comes from the last block and its norm, in float64."""
    logits = np.asarray(model.head.weight.array, np.float64) @ hidden * float(model.config.final_scale)
    cap = model.config.logit_softcap
    return cap * np.tanh(logits / cap) if cap else logits
