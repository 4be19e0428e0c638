"""The algebra of sensitivity bounds.

A [`Bound`][] travels through a network beside the activations. It says two things about what reaches a point of
the network: no activation there has an RMS norm above `radius`, and the map from the input to that point is
`exp(log_lipschitz)`-Lipschitz between RMS norms, ‖v‖ = ‖v‖₂/√d.

Every operation rounds its result up by a few units in the last place of its working precision, so that in float64 a
bound computed here is not below the bound that exact arithmetic would give. (Each `np.log`, `np.exp`, product or sum
errs by at most a few units of 2⁻⁵³ relative to the larger of 1 and its result; we add 2⁻⁴⁹.) The same code runs on JAX
scalars inside jit, where it is a differentiable bound up to float32 rounding.
"""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Scalar = float | np.floating | np.ndarray | Float[jax.Array, "..."]
"""A real number, or one for each matrix of a batch: Python or NumPy float64 on the host, a JAX array inside jit."""


def namespace(*values: Scalar) -> ModuleType:
    """jax.numpy if one of the values is a JAX array, else numpy."""
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def _margin(value: Scalar) -> float:
    return 16 * float(jnp.finfo(value.dtype).eps) if isinstance(value, jax.Array) else 2.0**-49


def round_up(value: Scalar, operations: int = 1) -> Scalar:
    """A nonnegative number that is not below `value` computed exactly, by so many sums, products and roots."""
    with np.errstate(over="ignore"):
        return value * (1 + operations * _margin(value))


def _tiny(value: Scalar) -> float:
    """The smallest normal number of a value's type."""
    return float(jnp.finfo(value.dtype).tiny if isinstance(value, jax.Array) else np.finfo(np.float64).tiny)


def _round_log_up(value: Scalar) -> Scalar:
    xp = namespace(value)
    size = xp.where(xp.isfinite(value), 1 + abs(value), 0.0)[()]
    return value + _margin(value) * size


def log(value: Scalar) -> Scalar:
    """Natural logarithm with log 0 = -∞, silently."""
    with np.errstate(divide="ignore"):
        return namespace(value).log(value)


class Bound(eqx.Module):
    """An upper bound on the size of an activation and on its sensitivity to the input.

    **Attributes:**

    - `radius`: an upper bound r on the RMS norm of the activation (for a sequence: of every token).
    - `log_lipschitz`: the natural logarithm of an upper bound L on the Lipschitz constant so far, RMS → RMS. The
      logarithm is kept because deep unconstrained networks overflow float64.

    !!! example

        ```python
        Bound(radius=1.0, log_lipschitz=0.0).scale(3.0).lipschitz  # 3.0, rounded up
        ```
    """

    radius: Scalar
    log_lipschitz: Scalar

    @property
    def lipschitz(self) -> Scalar:
        """L itself, rounded up; infinite where float64 overflows."""
        xp = namespace(self.log_lipschitz)
        with np.errstate(over="ignore", under="ignore"):
            value = round_up(xp.exp(self.log_lipschitz))
        return xp.maximum(value, xp.where(self.log_lipschitz > -math.inf, _tiny(value), 0.0))[()]

    @property
    def log10_lipschitz(self) -> Scalar:
        """log₁₀ L."""
        return self.log_lipschitz / math.log(10)

    def scale(self, norm: Scalar) -> "Bound":
        """The bound after a linear map of norm at most `norm` ≥ 0: (‖W‖r, ‖W‖L).

        Zero times infinity is zero: a layer of norm 0 has a constant output, however large its input.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            xp = namespace(norm, self.radius)
            zero = norm == 0
            radius = xp.where(zero, 0.0, norm * self.radius)[()]
            positive = xp.where(zero, 1.0, norm)  # log 0 would make the gradient NaN, though it is not chosen.
            log_lipschitz = xp.where(zero, -math.inf, self.log_lipschitz + log(positive))[()]
        return Bound(round_up(radius), _round_log_up(log_lipschitz))

    def shift(self, norm: Scalar) -> "Bound":
        """The bound after adding a constant vector of RMS norm at most `norm`: (r + ‖b‖, L)."""
        return Bound(round_up(self.radius + norm), self.log_lipschitz)

    def clip(self, radius: Scalar) -> "Bound":
        """The bound after a 1-Lipschitz map whose output never exceeds `radius`: (min(r, radius), L)."""
        return Bound(namespace(self.radius, radius).minimum(self.radius, radius), self.log_lipschitz)


def weighted_sum(weights: Sequence[float], bounds: Sequence[Bound]) -> Bound:
    """The bound of Σᵢ wᵢfᵢ(x) with wᵢ ≥ 0, from the bounds of the fᵢ: (Σ wᵢrᵢ, Σ wᵢLᵢ), the sum of the L in logs.

    A convex residual (1-α)x + αf(x) has the weights (1-α, α), a plain one x + f(x) has (1, 1).
    """
    parts = [bound.scale(weight) for weight, bound in zip(weights, bounds, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        xp = namespace(total.log_lipschitz, part.log_lipschitz)
        total = Bound(
            round_up(total.radius + part.radius),
            _round_log_up(xp.logaddexp(total.log_lipschitz, part.log_lipschitz)),
        )
    return total


def format_power(log10: Scalar) -> str:
    """A bound for a table, from its base-10 logarithm: plain from 1e-6 up to a million, else a power of ten.

    The last digit is rounded up, so that what is printed is a bound too.
    """
    log10 = float(log10)
    if math.isnan(log10):
        return "unknown"
    if math.isinf(log10):
        return "∞" if log10 > 0 else "0"
    if -6 < log10 < 6:
        return round_up_digits(10**log10 * (1 + 1e-14))
    return f"10^{math.ceil(10 * log10) / 10:.1f}"


def round_up_digits(value: float, digits: int = 5) -> str:
    """A finite nonnegative number with so many significant digits, rounded up."""
    if value == 0:
        return "0"
    exact = Decimal(value)
    last = Decimal((0, (1,), exact.adjusted() + 1 - digits))
    return f"{exact.quantize(last, ROUND_CEILING).normalize():f}"
