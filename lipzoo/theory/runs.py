"""What differs between the network that is meant and the one that runs, and what that does in one module.

Let f be a network in exact arithmetic and f̂ what runs in its place. A [`lipzoo.theory.bound.Bound`][] that is given
`Runs` carries a deviation e beside radius and Lipschitz constant: at that point of the network the two differ by at
most e in norm, for every input of the domain, and neither is larger than the radius. A module that is L-Lipschitz up to
that radius, and whose two versions differ by at most δ *at the same point*, takes e to Le + δ:

    ‖f̂(x̂) - f(x)‖ ≤ ‖f̂(x̂) - f(x̂)‖ + ‖f(x̂) - f(x)‖ ≤ δ + Le.

So a module has to say its δ only, and here is what several of them have in common. Every operation that rounds
multiplies its result by a factor between 1-u and 1+u, and k of them by one between 1-γₖ and 1+γₖ, γₖ = ku/(1-ku)
(Higham 2002, lemma 3.1); where a device takes numbers below `smallest` for zero, that much is added. Norms are RMS
norms, so that entries that are each off by at most t are a vector that is off by at most t.

The numbers here are float64: formulas of positive terms, whose own roundings `Bound.off` adds.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from lipzoo.theory.numbers import Scalar
from lipzoo.theory.products import gamma
from lipzoo.theory.weight import Measure, Weight

LARGEST = 2.0**60
"""Entries up to which the squares of vectors have a sum that float32 and bfloat16 can hold (2¹²⁸)."""
SMALL = 2.0**-120
"""Factors from here to the inverse of this are no exceptions in float32 and bfloat16."""


@dataclasses.dataclass(frozen=True)
class Functions:
    """By how much elementary functions are off at most, in float32, on some backend (`source`).

    Relative to their values: `exp` up to 0, `tanh`, `rsqrt`; absolute: `erfc`, and `angle`, of sine and cosine.
    """

    exp: float
    tanh: float
    rsqrt: float
    erfc: float
    angle: float
    source: str


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A format in which networks run.

    **Attributes:**

    - `unit`: unit roundoff of what is stored between operations.
    - `factor`: of what both factors of a matrix product are rounded to before they are multiplied; 0 if they are not.
    - `total`: of sums of products, which may be taken in any order, with or without fused multiplication.
    - `entry`: of the input, which is given in float32.
    - `functions`: what elementary functions are off by, before they are rounded to `unit`.
    """

    name: str
    unit: float
    factor: float
    total: float
    entry: float
    functions: Functions
    smallest: float = 2.0**-126

    def entered(self, radius: Scalar) -> Scalar:
        """What rounding it does to an input of this size."""
        return self.entry * radius + (self.smallest if self.entry else 0.0)

    def holds(self, factor: float) -> float:
        """0 where a number, and its inverse if it has one, are such as float32 and bfloat16 have; else ∞."""
        return 0.0 if factor == 0 or SMALL <= abs(factor) <= 1 / SMALL else math.inf

    def rounded(self, operations: int, size: Scalar) -> Scalar:
        """What so many roundings, one after the other, do to a result of this size."""
        return gamma(operations, self.unit) * size + operations * self.smallest

    def summed(self, terms: int) -> float:
        """γ of a sum of so many products, whose factors may be rounded before: (1+u')²(1+γₙ) - 1."""
        return ((1 + self.factor) ** 2 * (1 + gamma(terms, self.total)) - 1) * (1 + 2.0**-30)


def zero(weight: Weight) -> Scalar:
    """Of weights that run as they are stored."""
    return np.zeros(np.shape(weight.array)[:-2])[()]


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """What runs in place of what is meant.

    **Attributes:**

    - `arithmetic`: in what it computes; None for exactly.
    - `difference`: the norms of Ŵ - W, Ŵ what runs in place of a weight W.
    - `absolute`: the norms of |Ŵ|, the matrix of absolute values.
    - `tokens`: how many there are in a sequence, at most.
    - `held`: whether the norms that a bound is measured by are bounds of Ŵ as well, as caps of both are. What runs,
      exactly, is then no larger than what is meant can be.
    """

    arithmetic: Arithmetic | None = None
    difference: Measure = zero
    absolute: Measure = zero
    tokens: int = 1
    held: bool = False

    def counted(self, error: Callable[[Arithmetic], Scalar]) -> Scalar:
        """An error of the arithmetic; 0 where it is exact."""
        return 0.0 if self.arithmetic is None else error(self.arithmetic)

    def overflow(self, radius: Scalar, size: int) -> Scalar:
        """∞ where an entry of so many may be so large that sums of squares overflow, else 0."""
        return self.counted(lambda a: np.where(radius * math.sqrt(size) < LARGEST, 0.0, math.inf))

    def rounded(self, operations: int, size: Scalar) -> Scalar:
        """What so many roundings, one after the other, do to a result of this size."""
        return self.counted(lambda a: a.rounded(operations, size))

    def product(
        self, weight: Weight, radius: Scalar, measure: Measure, terms: int | None = None, factor: float = 1.0
    ) -> Scalar:
        """By how much Ŵx as it is computed is off from Wx, ‖x‖ ≤ r: by ‖Ŵ - W‖r, and by what follows.

        `terms` are those of the sum of one entry, by default as many as a row has. `factor` is what norms of W are
        multiplied by, as for the product with Wᵀ.

        **Sums.** Let pⱼ = ŵⱼxⱼ. Rounding it, if that happens, is off by u|pⱼ|. Each of n-1 sums, whatever the order, is
        one of the pⱼ of a set, plus what it is off by, at most γₙΣ|pⱼ|; no sum of a set is larger than that of all
        positive or of all negative ones, and these are at most (Σ|pⱼ| + |Σpⱼ|)/2. Rounding it is off by u times its
        size, and the errors of all sums add up. Over all entries, Σ|pⱼ| has the norm ‖|Ŵ|‖r and Σpⱼ the norm ‖Ŵ‖r, so
        that the product is off by u(n(‖|Ŵ|‖ + ‖Ŵ‖)/2 + (1 + nγₙ)‖|Ŵ|‖)r. With factors rounded to u', each p is off by
        ((1+u')² - 1)|p| before. The result is rounded once more where it is stored in less.

        **What vanishes** below t: n products and n sums of each entry, and entries of Ŵ, by which it is off by at most
        tΣ|xⱼ| ≤ tn·r, and of x.
        """
        terms, moved = terms or weight.array.shape[-1], factor * self.difference(weight) * radius

        def error(a: Arithmetic) -> Scalar:
            absolute, image = factor * self.absolute(weight), factor * measure(weight) * radius + moved
            size, factors = absolute * radius, (1 + a.factor) ** 2 - 1
            if not np.isfinite(size).all():
                return math.inf
            off = factors * size
            sums = terms * (size + image + off) / 2 + (1 + terms * gamma(terms, a.total)) * size
            off = off + (1 + factors) * a.total * (1 + a.total) * sums
            off = off + a.smallest * (2 * terms + terms * radius + absolute)
            return off + (a.rounded(1, image + off) if a.unit > a.total else 0.0)

        return moved + self.counted(error)

    def plus(self, error: Scalar, bias: Weight, size: Scalar, measure: Measure) -> Scalar:
        """By how much a sum with a bias is off, of something of this size that is itself off by `error`."""
        error = error + self.difference(bias)
        return error + self.rounded(1, size + measure(bias) + error)


def sure(error: Scalar) -> Scalar:
    """An error with the roundings of its own formula added; infinite where that is no number."""
    return np.nan_to_num(np.asarray(error, np.float64) * (1 + 2.0**-40), nan=math.inf, posinf=math.inf)[()]
