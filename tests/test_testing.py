"""The attack on claims: it finds what is wrong, and passes what is right."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import lipzoo
from lipzoo.models import GELU, AbstractModule, Attention, Linear, RMSNorm, Sequential
from lipzoo.testing import check_bound
from lipzoo.theory.numbers import log_up
from lipzoo.theory.space import Symbols, Tokens, Vector
from lipzoo.theory.weight import Weight
from tests.conftest import svd_norm


def matrix(key, shape=(8, 8), name="w"):
    return Weight(jax.random.normal(jax.random.key(key), shape), name)


class Lying(AbstractModule):
    """A module that claims a part of what the true one does."""

    module: AbstractModule
    gain: float = 1.0
    size: float = 1.0

    @property
    def takes(self):
        return self.module.takes

    def __call__(self, x):
        return self.module(x)

    def bound(self, incoming, measure):
        bound = self.module.bound(incoming, measure)
        return bound.grow(log_up(self.size), log_up(self.gain))


def test_what_is_found_of_a_matrix_is_its_norm():
    module = Linear(matrix(0))
    found = check_bound(module, steps=200)
    norm = float(svd_norm(module.weight.array))
    assert 0.99 * norm <= found.gain <= norm * (1 + 1e-5)
    assert 0.99 * norm <= found.output <= norm * (1 + 1e-5)
    assert found.lipschitz == pytest.approx(norm, rel=1e-9)


TRUE = [
    (Sequential([Linear(matrix(0)), GELU(), Linear(matrix(1, name="v"))]), None),
    (Sequential([RMSNorm(0.1)]), Vector((5,))),
    (RMSNorm(0.1), Tokens(5)),
    (Attention(*(matrix(i, name="qkvo"[i]) for i in range(4)), 2), None),
    (Attention(*(matrix(i, name="qkvo"[i]) for i in range(4)), 2, rotary=False), None),
]


@pytest.mark.parametrize(("module", "space"), TRUE, ids=[type(m).__name__ for m, _ in TRUE])
def test_true_claims_pass(module, space):
    found = check_bound(module, space, seeds=2, steps=20)
    assert 0 < found.gain <= found.lipschitz * (1 + 1e-4)
    assert 0 < found.output <= found.radius * (1 + 1e-4)


LIES = [
    ({"gain": 0.9}, "found a gain of"),
    ({"size": 0.9}, "found an output of"),
]


@pytest.mark.parametrize(("lie", "message"), LIES)
def test_false_claims_are_refuted(lie, message):
    with pytest.raises(AssertionError, match=message):
        check_bound(Lying(Linear(matrix(0)), **lie), steps=100)


class ForTheseWeights(AbstractModule):
    """Wx, claiming for every W under its cap what holds for one of norm 1/2 alone."""

    weight: Weight

    @property
    def takes(self):
        return Vector((8,))

    def __call__(self, x):
        return self.weight.array @ x * jnp.sum(self.weight.array[0] ** 2)

    def bound(self, incoming, measure):
        return incoming.scale(measure(self.weight) * 0.25)


def test_claims_that_hold_for_some_weights_alone_are_refuted():
    weight = Weight(jnp.diag(jnp.array([0.5, *[1.0] * 7])), "w")
    with pytest.raises(AssertionError, match="gradient ascent on weights and inputs found a gain"):
        check_bound(ForTheseWeights(weight), steps=60)


def test_what_cannot_be_attacked_is_said():
    with pytest.raises(ValueError, match="needs inputs that have a norm, not a sequence of whole numbers"):
        check_bound(GELU(), Symbols(5))
    with pytest.raises(ValueError, match="needs inputs that have a norm, not None"):
        check_bound(GELU())
    with pytest.raises(TypeError):
        check_bound(dataclasses)
    assert lipzoo.testing.check_bound is check_bound
