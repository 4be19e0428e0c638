"""Residual blocks that are a step down a convex potential."""

import dataclasses
import math

import equinox as eqx
from jaxtyping import Array, Float

from lipzoo.layers.activation import ReLU, Tanh
from lipzoo.layers.base import AbstractModule, check_positive
from lipzoo.layers.convolution import Conv2d
from lipzoo.layers.linear import Linear, Pointwise
from lipzoo.layers.product import product
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import Scalar, exp_up, log_times, log_up, namespace
from lipzoo.theory.runs import Arithmetic, Runs
from lipzoo.theory.space import Space
from lipzoo.theory.weight import Measure


class PotentialResidual(AbstractModule):
    """x ↦ x - h·Wᵀφ(Wx + b), W a matrix (of all entries, or of channels) or a convolution, φ = ReLU or tanh of entries.

    For any two inputs, φ(u) - φ(v) = D(u - v) with a diagonal D between 0 and 1. So outputs differ by
    (I - hWᵀDW)(x - y), a symmetric matrix with eigenvalues between 1 - hσ₁² and 1: the map is max(1, hσ₁² - 1)-
    Lipschitz, and 1-Lipschitz for h ≤ 2/σ₁². In RMS norms σ₁² = ‖W‖‖Wᵀ‖ = ‖W‖²·out/in. Unlike (1-α)x + αf(x) it keeps
    what W does not see. (Meunier et al. 2022, arXiv 2110.12690.)

    **Other φ.** MaxMin exchanges two entries, and D is no diagonal matrix: with W = I and h = 2 differences along
    (1, -1) are multiplied by 1 + h = 3. GELU falls with a slope of -0.129, where they are multiplied by 1 + 0.129h.

    **Raises:** TypeError unless φ is one of these, and W of these; ValueError for a convolution with a stride.
    """

    deviates = True
    inner: Linear | Pointwise | Conv2d
    activation: AbstractModule
    step: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        if type(self.inner) not in (Linear, Pointwise, Conv2d):  # Others may compute something else.
            name = type(self.inner).__name__
            raise TypeError(f"a potential residual takes a Linear, a Pointwise or a Conv2d, got {name}")
        if type(self.activation) not in (ReLU, Tanh):
            raise TypeError(
                f"a potential residual takes ReLU or Tanh, whose slopes lie in [0, 1] and which act on entries by "
                f"themselves: with {type(self.activation).__name__} it can be steeper than 1"
            )
        check_positive(self.step, "the step of a potential residual")
        if isinstance(self.inner, Conv2d) and self.inner.geometry.stride != 1:
            raise ValueError(f"a potential residual needs a convolution of stride 1: {self.inner.weight.name} has not")

    @property
    def takes(self) -> Space | None:
        return self.inner.takes

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x - self.step * self._back(self.activation(self.inner(x)))

    def _back(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.inner.transposed(y) if isinstance(self.inner, Conv2d) else product(y, self.inner.weight.array.mT)

    @property
    def _turned(self) -> float:
        """‖Wᵀ‖/‖W‖ = n_out/n_in, rounded up: by what RMS→RMS norms of W are multiplied to be those of Wᵀ.

        Of matrices it is out/in, also where they are measured by more than that norm.
        """
        out, into = self.inner.weight.array.shape[-2:]
        ratio = self.inner.weight.rms_factor**-2 if isinstance(self.inner, Conv2d) else out / into
        return ratio * (1 + 2.0**-49)

    @property
    def _terms(self) -> int:
        """How many products an entry of Wᵀy sums."""
        out = self.inner.weight.array.shape[-2]
        if not isinstance(self.inner, Conv2d):
            return out
        return out // self.inner.geometry.groups * self.inner.geometry.kernel**2

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(Lr + h‖Wᵀ‖‖b‖, max(1, h‖W‖‖Wᵀ‖ - 1)·L): at 0 it is -hWᵀφ(b), and |φ(b)| ≤ |b|.

        What runs is off by what the branch is at the same point, and rounds h, the product, and the difference.
        """
        self.inner.bound(incoming, measure)  # Which checks the space; the transposed map leads back to it.
        norm, back, like = measure(self.inner.weight), self.step * self._turned, incoming.log_radius
        log_norm, log_back = log_up(norm, like), log_up(back, like)
        product = exp_up(log_times(log_back, log_norm, log_norm))
        gain = log_up(namespace(product).maximum(1.0, product - 1), like)
        image = incoming.grow(gain, gain)
        if self.inner.bias is not None:
            offset = log_times(log_back, log_norm, log_up(measure(self.inner.bias), like))
            image = image.shift(exp_up(offset))
        return image.off(lambda runs: self._error(runs, incoming, measure))

    def _error(self, runs: Runs, incoming: Bound, measure: Measure) -> Scalar:
        """By how much what runs is off at the same point."""
        weight, turned, step = self.inner.weight, self._turned, float(self.step)
        here = dataclasses.replace(incoming, log_deviation=-math.inf)
        y = self.activation.bound(self.inner.bound(here, measure), measure)
        terms = self._terms
        image = turned * measure(weight) * y.radius
        off = turned * measure(weight) * y.deviation + runs.product(weight, y.radius, measure, terms, turned)

        def error(a: Arithmetic) -> Scalar:
            return a.rounded(3, incoming.radius + step * (image + off)) + a.holds(step) + a.smallest * step

        return step * off + runs.counted(error)
