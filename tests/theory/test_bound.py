"""The algebra of bounds against mpmath-free exact arithmetic (fractions) and closed forms."""

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipzoo.theory.bound import Bound, weighted_sum
from lipzoo.theory.numbers import format_power
from lipzoo.theory.space import Vector

SPACE = Vector((4,))


def make(radius, log_lipschitz):
    """A bound with these numbers, of whatever."""
    return dataclasses.replace(Bound.start(SPACE, radius), log_lipschitz=log_lipschitz)


norms = st.floats(1e-6, 1e6)


@given(st.lists(norms, min_size=1, max_size=30))
def test_scaling_never_falls_below_the_exact_product(factors):
    bound = make(1.0, 0.0)
    exact = Fraction(1)
    for factor in factors:
        bound = bound.scale(factor)
        exact *= Fraction(factor)
    assert Fraction(float(bound.radius)) >= exact
    exact_log = math.log(exact.numerator) - math.log(exact.denominator)
    assert bound.log_lipschitz >= exact_log - 1e-13
    assert bound.log_lipschitz == pytest.approx(exact_log, abs=1e-9)


@given(norms, norms, norms, norms, st.floats(0, 1))
def test_weighted_sum_is_the_sum_of_the_parts(r1, l1, r2, l2, alpha):
    parts = [make(r1, math.log(l1)), make(r2, math.log(l2))]
    total = weighted_sum((1 - alpha, alpha), parts)
    lipschitz = (1 - alpha) * l1 + alpha * l2
    assert total.radius >= (1 - alpha) * r1 + alpha * r2
    assert total.lipschitz >= lipschitz * (1 - 1e-15)
    assert total.lipschitz == pytest.approx(lipschitz, rel=1e-9)


def test_bounds_of_published_size_do_not_overflow():
    bound = make(1.0, 0.0)
    for _ in range(400):
        bound = bound.scale(1e3)
    assert bound.log10_lipschitz == pytest.approx(1200)
    assert bound.lipschitz == math.inf
    assert bound.radius == math.inf


@pytest.mark.parametrize(
    ("norm", "start", "log_lipschitz", "radius"),
    [
        (0.0, make(1.0, 0.0), -math.inf, 0.0),
        (0.0, make(math.inf, math.inf), -math.inf, 0.0),
        (math.inf, make(1.0, 0.0), math.inf, math.inf),
        (math.inf, make(0.0, -math.inf), -math.inf, 0.0),  # Of a matrix that is not known, but finite.
    ],
)
def test_zero_and_infinite_norms(norm, start, log_lipschitz, radius):
    bound = start.scale(norm)
    assert bound.log_lipschitz == log_lipschitz
    assert bound.radius == radius


def test_shift_and_clip():
    assert make(2.0, 0.0).shift(0.5).radius == pytest.approx(2.5)
    assert make(2.0, 1.0).clip(1.0).radius == 1.0
    assert make(0.5, 1.0).clip(1.0).radius == pytest.approx(0.5)
    assert make(2.0, 1.0).clip(1.0).log_lipschitz == 1.0


def test_runs_inside_jit_and_is_differentiable():
    def log_lipschitz(norm):
        return weighted_sum(
            (0.5, 0.5), (make(norm, jnp.zeros(())), make(norm, jnp.zeros(())).scale(norm))
        ).log_lipschitz

    value, slope = jax.jit(jax.value_and_grad(log_lipschitz))(jnp.float32(3.0))
    assert value == pytest.approx(math.log(2.0), abs=1e-4)
    assert slope == pytest.approx(0.5 / 2.0, rel=1e-4)
    assert value.dtype == jnp.float32


def test_the_gradient_is_finite_where_a_weight_is_zero():
    bound = lambda norm: Bound.start(SPACE, jnp.ones(())).scale(norm).radius  # noqa: E731
    assert jnp.isfinite(jax.grad(bound)(jnp.zeros(())))
    log = lambda norm: jnp.exp(Bound.start(SPACE, jnp.ones(())).scale(norm).log_lipschitz)  # noqa: E731
    assert jnp.isfinite(jax.grad(log)(jnp.zeros(())))


@pytest.mark.parametrize(
    ("log10", "text"),
    [
        (math.log10(14.97), "14.971"),
        (math.log10(1.23440003), "1.2345"),
        (4.99, "97724"),
        (6.049, "10^6.1"),
        (110.0, "10^110.0"),
        (-400.0, "10^-400.0"),
        (math.inf, "∞"),
        (-math.inf, "0"),
        (math.nan, "unknown"),
    ],
)
def test_format_power(log10, text):
    assert format_power(np.float64(log10)) == text


def test_what_is_too_small_for_float64_is_not_zero():
    assert make(1.0, -800.0).lipschitz > 0
    assert make(1.0, -math.inf).lipschitz == 0
