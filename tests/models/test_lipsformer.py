"""LipsFormer: its attention is the published one, its first weights are what the paper says, and it trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.layers.rotary import rotate
from lipzoo.models import GPT, GPTConfig
from lipzoo.models.lipsformer import FIRST_STRENGTH
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.geometry import DENSE, ENTRIES, OFFSETS
from lipzoo.theory.weight import map_weights, weights
from tests.conftest import svd_norm

CONFIG = GPTConfig("lipsformer", width=16, depth=2, heads=2, softmax_scale=5.0, epsilon=0.2, zero_init=False)


def make(**options):
    return GPT(11, dataclasses.replace(CONFIG, **options), key=jax.random.key(0))


def test_attention_is_that_of_cosines_with_epsilon():
    """softmax(τ q̂k̂ᵀ)v̂ with rows divided by √(‖x‖₂² + ε), written out in NumPy head by head."""
    attention = make().stack.block(0).layers[0].branch.layers[1]
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)

    def rows(weight, head):
        y = x @ np.asarray(weight.array)[head].T
        return y / np.sqrt((y**2).sum(-1, keepdims=True) + 0.2)

    heads = []
    for head in range(2):
        q, k, v = (rows(weight, head) for weight in (attention.q, attention.k, attention.v))
        q, k = (np.asarray(rotate(jnp.asarray(x)[:, None])[:, 0]) for x in (q, k))
        scores = 5.0 * q @ k.T
        share = np.exp(np.where(np.tril(np.ones((5, 5), bool)), scores, -np.inf))
        heads.append(share / share.sum(-1, keepdims=True) @ v)
    expected = np.concatenate(heads, axis=1) @ np.asarray(attention.out.array).T
    np.testing.assert_allclose(attention(jnp.asarray(x)), expected, atol=1e-5)


def test_first_weights():
    for weight in weights(make()):
        if weight.geometry == DENSE and weight.place == "hidden":
            sigma = svd_norm(weight.array) / weight.rms_factor
            assert (sigma > 0.99).all()
            assert (sigma <= 1).all()
        elif weight.name.endswith("strength"):
            np.testing.assert_array_equal(weight.array, np.float32(FIRST_STRENGTH))
        elif weight.geometry == ENTRIES:
            np.testing.assert_allclose(weight.array, 1, atol=2e-5)


@pytest.mark.parametrize("granularity", ["head"])
def test_the_certificate_grows_with_the_strengths_and_shrinks_with_epsilon(granularity):
    def certified(gpt):
        return Certificate.of(gpt).lipschitz

    gpt = make(granularity=granularity)
    stronger = map_weights(lambda w: w.with_array(w.array * (2 if w.name.endswith("strength") else 1)), gpt)
    assert certified(gpt) < certified(stronger)
    assert certified(make(granularity=granularity, epsilon=2.0)) < certified(gpt)
    none = map_weights(lambda w: w.with_array(w.array * (0 if w.name.endswith("strength") else 1)), gpt)
    assert certified(none) == pytest.approx(svd_norm(gpt.head.weight.array))


@pytest.mark.parametrize("sigma_max", [0.5, 1.0, 3.0])
def test_a_fresh_model_is_under_its_caps(sigma_max):
    """With σ₁ = 1 an MLP's second matrix begins at the RMS→RMS norm 2, a head's at √heads."""
    recipe = Recipe(model=CONFIG, constraint=ConstraintConfig("soft-cap", sigma_max=sigma_max))
    for weight in weights(recipe.build_model(jax.random.key(0))):
        norms = svd_norm(weight.array)
        assert (norms <= weight.cap).all(), weight.name


def test_gains_are_capped_one_by_one_and_position_biases_are_free():
    recipe = Recipe(model=CONFIG, constraint=ConstraintConfig("stiefel", sigma_max=0.5))
    names = {weight.name: weight for weight in weights(make())}
    assert recipe.cap_of(names["blocks.mlp.strength"]) == 0.5
    assert type(recipe.constraint.of(names["blocks.mlp.strength"])).__name__ == "SpectralNormalize"
    biased = GPT(11, GPTConfig(width=16, heads=2, relative_bias=4), key=jax.random.key(0))
    (position,) = [weight for weight in weights(biased) if weight.geometry == OFFSETS]
    assert recipe.cap_of(position) == np.inf
