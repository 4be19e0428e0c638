"""Numbers that only err upwards: logarithms of norms, their sums and products, and how they are printed."""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from types import ModuleType

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


def _tiny(value: Scalar) -> float:
    """The smallest normal number of a value's type."""
    return float(jnp.finfo(value.dtype).tiny if isinstance(value, jax.Array) else np.finfo(np.float64).tiny)


def round_log_up(value: Scalar, operations: float = 1.0) -> Scalar:
    """A logarithm that is not below `value` computed exactly, by so many operations; what is infinite stays so."""
    xp = namespace(value)
    size = xp.where(xp.isfinite(value), 1 + abs(value), 0.0)
    return (value + operations * _margin(value) * size)[()]


def log_up(value: Scalar, *others: Scalar) -> Scalar:
    """Natural logarithm of a number ≥ 0, rounded up; exact for 0 and 1, with the slope 0 at 0.

    The others only say whether it is to be a JAX number.
    """
    exact = _log(value, *others)
    return namespace(exact).where(exact == 0, 0.0, round_log_up(exact))[()]


def _log(value: Scalar, *others: Scalar) -> Scalar:
    xp = namespace(value, *others)
    if xp is np:  # Whatever type the number came in: a logarithm in float32 would be off by more than is added.
        value = np.asarray(value, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return xp.where(value == 0, -math.inf, xp.log(xp.where(value == 0, 1.0, value)))[()]


def log_times(*logs: Scalar) -> Scalar:
    """log ∏ xᵢ from the log xᵢ, rounded up at every product but those with 1.

    Zero times infinity is zero: a layer of norm 0 has a constant output, however large its input; and an infinite norm
    stands for one that is not known, but finite.
    """
    total, *rest = logs
    xp = namespace(*logs)
    for other in rest:
        zero = (total == -math.inf) | (other == -math.inf)
        product = xp.where(zero, 0.0, total) + xp.where(zero, 0.0, other)
        product = xp.where((total == 0) | (other == 0), product, round_log_up(product))
        total = xp.where(zero, -math.inf, product)
    return total


def log_sum(parts: Scalar | Sequence[Scalar]) -> Scalar:
    """log Σ xᵢ from the log xᵢ along the leading axis, rounded up; with the slope 0 where all are 0."""
    xp = namespace(*parts) if isinstance(parts, Sequence) else namespace(parts)
    logs = xp.stack(xp.broadcast_arrays(*parts)) if isinstance(parts, Sequence) else parts
    largest = xp.max(logs, axis=0, keepdims=True)
    unit = xp.where(xp.isfinite(largest), largest, 0.0)
    unit = jax.lax.stop_gradient(unit) if xp is jnp else unit
    with np.errstate(over="ignore"):
        total = unit[0] + _log(xp.sum(xp.exp(logs - unit), axis=0))
    return round_log_up(total, operations=1 + _count(logs) / 8)


def log_root_mean_square(logs: Scalar) -> Scalar:
    """log √mean xᵢ² from the log xᵢ along the leading axis, rounded up."""
    return round_log_up((log_sum(2 * logs) - math.log(_count(logs))) / 2, operations=2.0)


def log_hypot(first: Scalar, second: Scalar) -> Scalar:
    """log √(x² + y²) from log x and log y, rounded up."""
    return log_sum([2 * first, 2 * second]) / 2


def _count(values: Scalar) -> int:
    return int(np.shape(values)[0])  # pyright: ignore[reportGeneralTypeIssues]


def exp_up(value: Scalar) -> Scalar:
    """exp rounded up; exact for -∞ and 0. What is too small for the type is its smallest number, not zero."""
    xp = namespace(value)
    with np.errstate(over="ignore", under="ignore"):
        result = xp.exp(value)
        result = xp.maximum(result * (1 + _margin(result)), xp.where(value > -math.inf, _tiny(result), 0.0))
    return xp.where(value == 0, 1.0, result)[()]


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
        return round_digits(10**log10 * (1 + 1e-14) if log10 else 1.0)
    return f"10^{math.ceil(10 * log10) / 10:.1f}"


def round_digits(value: float, digits: int = 5, *, up: bool = True) -> str:
    """A finite nonnegative number with so many significant digits: rounded up, as bounds are, or down, as domains.

    Of more than 15 places it is written with a power of ten.
    """
    if value == 0:
        return "0"
    exact = Decimal(value)
    last = Decimal((0, (1,), exact.adjusted() + 1 - digits))
    rounded = exact.quantize(last, ROUND_CEILING if up else ROUND_FLOOR).normalize()
    return f"{rounded:f}" if abs(exact.adjusted()) < 15 else f"{rounded:e}"
