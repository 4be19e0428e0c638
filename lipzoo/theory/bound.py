"""The algebra of sensitivity bounds.

A [`Bound`][] travels through a network beside the activations. It says what reaches a point of the network: an object
of a certain space (one vector, or a sequence of tokens: `lipzoo.space`) whose norm is at most `radius`, and a map from
the input to that point that is `lipschitz`-Lipschitz, between RMS norms ‖v‖ = ‖v‖₂/√d. And it keeps what the input was.

Both numbers are kept as logarithms: published constants reach 10^264, and squares of squares of small radii underflow.
Every operation rounds its result up by a few units in the last place of its working precision, so that in float64 a
bound computed here is not below the bound that exact arithmetic would give. (A logarithm of what was itself rounded
once or twice, or a sum, errs by at most a few units of 2⁻⁵³ relative to the larger of 1 and its result; we add 2⁻⁴⁹.)
The same code runs on JAX scalars inside jit, where it is a differentiable bound up to float32 rounding.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import numpy as np

from lipzoo.theory.numbers import Scalar, exp_up, log_sum, log_times, log_up, namespace
from lipzoo.theory.runs import Runs, sure
from lipzoo.theory.space import Space, SpaceError, Symbols, Tokens, Vector


class Domain(eqx.Module):
    """The inputs that a bound speaks of: those of a space whose norm is at most `radius`.

    `embedded` says that they are tokens that came from a table, whose largest row `radius` is.
    """

    space: Space = eqx.field(static=True)
    radius: Scalar
    embedded: bool = eqx.field(static=True, default=False)


class Bound(eqx.Module):
    """An upper bound on the size of an activation and on its sensitivity to the input.

    **Attributes:**

    - `log_radius`: the logarithm of an upper bound r on the norm of the activation.
    - `log_lipschitz`: the logarithm of an upper bound L on the Lipschitz constant so far, RMS → RMS.
    - `space`: what the activation is, and so how it is measured.
    - `domain`: what the input was.
    - `log_deviation`: the logarithm of an upper bound e on how far what runs is from what is meant, at every input.
    - `runs`: what runs; None where that is what is meant, and e is 0 (`lipzoo.theory.runs`).

    !!! example

        ```python
        Bound.start(Vector((8,)), radius=1.0).scale(3.0).lipschitz  # 3.0, rounded up
        ```
    """

    log_radius: Scalar
    log_lipschitz: Scalar
    space: Space = eqx.field(static=True)
    domain: Domain
    log_deviation: Scalar = -math.inf
    runs: Runs | None = eqx.field(static=True, default=None)

    @staticmethod
    def start(space: Space, radius: Scalar = 1.0, runs: Runs | None = None) -> "Bound":
        """The bound of an input: all of a space that is no larger than `radius`.

        What runs takes it in float32, and may round that to less.
        """
        radius = radius if isinstance(radius, jax.Array) else np.float64(radius)
        log_radius = log_up(radius)
        start = Bound(log_radius, namespace(radius).zeros_like(log_radius)[()], space, Domain(space, radius), runs=runs)
        return start.off(lambda runs: runs.counted(lambda a: a.entered(radius)))

    @property
    def radius(self) -> Scalar:
        """r itself, rounded up; infinite where float64 overflows."""
        return exp_up(self.log_radius)

    @property
    def lipschitz(self) -> Scalar:
        """L itself, rounded up; infinite where float64 overflows."""
        return exp_up(self.log_lipschitz)

    @property
    def deviation(self) -> Scalar:
        """e itself, rounded up."""
        return exp_up(self.log_deviation)

    @property
    def log10_lipschitz(self) -> Scalar:
        """log₁₀ L."""
        return self.log_lipschitz / math.log(10)

    @property
    def log10_radius(self) -> Scalar:
        """log₁₀ r."""
        return self.log_radius / math.log(10)

    def scale(self, norm: Scalar) -> "Bound":
        """The bound after a linear map of norm at most `norm` ≥ 0: (‖W‖r, ‖W‖L).

        Zero times infinity is zero: a layer of norm 0 has a constant output, however large its input.
        """
        log_norm = log_up(norm, self.log_radius)
        return self.grow(log_norm, log_norm)

    def grow(self, log_size: Scalar, log_gain: Scalar) -> "Bound":
        """The bound after a map whose output is at most exp(log_size) times as large, and exp(log_gain)-Lipschitz."""
        return dataclasses.replace(
            self,
            log_radius=log_times(log_size, self.log_radius),
            log_lipschitz=log_times(log_gain, self.log_lipschitz),
            log_deviation=self._moved(log_gain),
        )

    def _moved(self, log_gain: Scalar) -> Scalar:
        """The deviation times a gain; what may have overflowed is no number, and times 0 it is none either."""
        if self.runs is None or self.log_deviation == math.inf:
            return self.log_deviation
        return log_times(log_gain, self.log_deviation)

    def off(self, error: Callable[[Runs], Scalar]) -> "Bound":
        """The bound of what runs, where that is off by `error` at the same input: (r + δ, L, e + δ).

        And e ≤ 2r, since both are no larger than r; unless what is computed may overflow, after which nothing is known.
        Where what runs is held by the same norms and computed exactly, r is a bound of its size already.
        """
        if self.runs is None or isinstance(self.space, Symbols):
            return self
        size = self.space.size
        with np.errstate(invalid="ignore", over="ignore"):  # What is no number there is ∞ here.
            delta = log_up(sure(error(self.runs) + self.runs.overflow(self.radius, size)))
        if math.inf in (delta, self.log_deviation):
            return dataclasses.replace(self, log_radius=np.float64(math.inf), log_deviation=np.float64(math.inf))
        bounded = delta == -math.inf or (self.runs.held and self.runs.arithmetic is None)
        radius = self.log_radius if bounded else log_sum([self.log_radius, delta])
        deviation = log_sum([self.log_deviation, delta]) if delta > -math.inf else self.log_deviation
        deviation = min(deviation, log_times(log_up(2.0), radius))
        return dataclasses.replace(self, log_radius=radius, log_deviation=deviation)

    def shift(self, norm: Scalar) -> "Bound":
        """The bound after adding a constant vector of RMS norm at most `norm`: (r + ‖b‖, L)."""
        return dataclasses.replace(self, log_radius=log_sum([self.log_radius, log_up(norm, self.log_radius)]))

    def clip(self, radius: Scalar) -> "Bound":
        """The bound after a 1-Lipschitz map whose output never exceeds `radius`: (min(r, radius), L)."""
        limit = log_up(radius, self.log_radius)
        return dataclasses.replace(self, log_radius=namespace(limit).minimum(self.log_radius, limit))

    def to(self, space: Space) -> "Bound":
        """The same numbers, said of an activation of another space."""
        return dataclasses.replace(self, space=space)

    def sized(self, who: str) -> "Bound":
        """This, if what comes in has a norm. Raises SpaceError, naming `who` takes it, if it has none."""
        if isinstance(self.space, Symbols):
            raise SpaceError(f"{who} was given {self.space}, which has no norm: embed it first")
        return self

    def vector(self, who: str, size: int | None = None, *, flat: bool = False) -> "Bound":
        """This, if what comes in is one vector (of `size` entries, in one axis if `flat`). Raises SpaceError."""
        fits = isinstance(self.space, Vector) and size in (None, self.space.size)
        if not fits or (flat and len(self.space.shape) != 1):  # pyright: ignore[reportAttributeAccessIssue]
            wanted = "one vector" if size is None else f"one vector of {size} entries"
            hint = _hint(self.space, flat and fits)
            raise SpaceError(f"{who} takes {wanted}, but was given {self.space}{hint}")
        return self

    def tokens(self, who: str, size: int | None = None) -> "Bound":
        """This, if what comes in is a sequence of tokens (of `size` entries). Raises SpaceError."""
        if not isinstance(self.space, Tokens) or size not in (None, self.space.size):
            wanted = "a sequence of tokens" if size is None else f"a sequence of tokens of {size} entries"
            raise SpaceError(f"{who} takes {wanted}, but was given {self.space}")
        return self


def _hint(space: Space, unflattened: bool) -> str:
    if isinstance(space, Tokens):
        return ": put it into PerToken"
    return ": put Flatten before it" if unflattened else ""


def weighted_sum(weights: Sequence[float], bounds: Sequence[Bound]) -> Bound:
    """The bound of Σᵢ wᵢfᵢ(x) with wᵢ ≥ 0, from the bounds of the fᵢ: (Σ wᵢrᵢ, Σ wᵢLᵢ), both sums in logs.

    What runs rounds every weight, every product, and sums.

    A convex residual (1-α)x + αf(x) has the weights (1-α, α), a plain one x + f(x) has (1, 1).

    **Raises:** SpaceError unless all fᵢ give objects of one space from inputs of one space. (Smaller arrays would be
    repeated to fit larger ones, and their norm grow.)
    """
    first, *rest = bounds
    for other in rest:
        if other.space != first.space or other.domain.space != first.domain.space:
            raise SpaceError(f"what is added must be of one kind: {first.space} is not {other.space}")
    parts = [bound.scale(weight) for weight, bound in zip(weights, bounds, strict=True)]
    log_radius, log_lipschitz = log_sum([p.log_radius for p in parts]), log_sum([p.log_lipschitz for p in parts])
    total = dataclasses.replace(first, log_radius=log_radius, log_lipschitz=log_lipschitz)
    if first.runs is None:
        return total
    total = dataclasses.replace(total, log_deviation=log_sum([p.log_deviation for p in parts]))
    return total.off(lambda runs: runs.rounded(len(parts) + 1, total.radius))
