"""Bounds around a prompt, against random and sought changes of its embedded tokens, and all other tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import SvdCap
from lipzoo.evaluate.prompts import Prompt
from lipzoo.models import GPT, GPTConfig
from lipzoo.theory.weight import map_weights

TOKENS = (3, 0, 7, 7, 1, 4)
CONFIGS = {
    "default": GPTConfig(width=16, heads=2, depth=2, zero_init=False),
    "sharp": GPTConfig(width=16, heads=4, depth=2, zero_init=False, softmax_scale=6.0, relative_bias=4),
    "not rotated": GPTConfig(width=16, heads=2, depth=2, zero_init=False, rotary=False, granularity="matrix"),
    "usual": GPTConfig(width=16, heads=2, depth=2, zero_init=False, norm="rms", residual="plain", qk_norm=True),
    "layer norm": GPTConfig(width=16, heads=2, depth=1, zero_init=False, norm="layer", activation="maxmin"),
    "lipsformer": GPTConfig(width=16, heads=2, depth=2, zero_init=False, architecture="lipsformer", epsilon=0.1),
    "window, softcap": GPTConfig(width=16, heads=2, depth=2, zero_init=False, window=3, logit_softcap=2.0),
}


def make(name, size=1.5):
    model = GPT(11, CONFIGS[name], cap=1.0, key=jax.random.key(1)).project(SvdCap())
    return map_weights(lambda w: w.with_array(w.array * (1 if w.geometry.single else size)), model)


def changes(model, x):
    return np.asarray(jax.jit(jax.vmap(lambda x: model.logits(model.stack(x))[-1]))(x), np.float64)


def directions(count, time, size, seed=0):
    v = np.random.default_rng(seed).normal(size=(count, time, size))
    return v / np.sqrt((v**2).mean(-1, keepdims=True))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_no_change_of_the_embedded_tokens_moves_logits_further(name, radius):
    model, prompt = make(name), Prompt(make(name), TOKENS)
    still = changes(model, jnp.asarray(prompt.center, jnp.float32)[None])[0]
    moved = prompt.near(np.full(len(TOKENS), radius))
    np.testing.assert_allclose(moved.logits, still, atol=2e-4)

    def range_(v):
        change = model.logits(model.stack(jnp.asarray(prompt.center, jnp.float32) + v))[-1] - still.astype(np.float32)
        return change.max() - change.min()

    v = jnp.asarray(radius * directions(64, len(TOKENS), 16), jnp.float32)
    climb = jax.jit(jax.vmap(jax.grad(range_)))
    for _ in range(15):
        v = v + radius * (lambda g: g / (jnp.sqrt(jnp.mean(g**2, -1, keepdims=True)) + 1e-9))(climb(v))
        v = radius * v / jnp.sqrt(jnp.mean(v**2, -1, keepdims=True))
    for shift in (v, jnp.asarray(radius * directions(64, len(TOKENS), 16, 1), jnp.float32)):
        change = changes(model, jnp.asarray(prompt.center, jnp.float32)[None] + shift) - still
        assert (abs(change).max(0) <= moved.change + 1e-4).all()
        assert (change.max(1) - change.min(1)).max() <= moved.range + 1e-4


def test_single_tokens_move_what_comes_after_alone():
    model, prompt = make("sharp"), Prompt(make("sharp"), TOKENS)
    for index in range(len(TOKENS)):
        radius = np.zeros(len(TOKENS))
        radius[index] = 0.5
        moved = prompt.near(radius)
        v = np.zeros((256, len(TOKENS), 16))
        v[:, index] = 0.5 * directions(256, 1, 16, index)[:, 0]
        change = changes(model, jnp.asarray(prompt.center + v, jnp.float32)) - moved.logits
        assert (abs(change).max(0) <= moved.change + 1e-4).all()
        assert moved.range < prompt.near(np.full(len(TOKENS), 0.5)).range


@pytest.mark.parametrize("name", ["default", "sharp"])
def test_no_substitution_moves_a_probability_further(name):
    model, prompt = make(name), Prompt(make(name), TOKENS)
    moved, places = prompt.substituted(1)
    assert len(places) == 1
    p, low, high = moved.probabilities
    assert p.sum() == pytest.approx(1)
    for index, token in itertools.product(range(len(TOKENS)), range(11)):
        other = np.array(TOKENS)
        other[index] = token
        logits = np.asarray(model(jnp.asarray(other)))[-1].astype(np.float64)
        q = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert (q >= low - 1e-6).all()
        assert (q <= high + 1e-6).all()
        assert (p * np.log(p / q)).sum() <= moved.kl + 1e-6
    pairs, _ = prompt.substituted(2)
    assert pairs.range >= moved.range


def test_local_is_smaller_than_global_and_neither_reaches_too_far():
    model, prompt = make("sharp"), Prompt(make("sharp"), TOKENS)
    radius = np.full(len(TOKENS), 0.05)
    assert prompt.near(radius).range < prompt.anywhere(0.05).range
    local, whole = prompt.reach(), prompt.reach(local=False)
    assert 0 < whole < local
    v = jnp.asarray(local * directions(512, len(TOKENS), 16), jnp.float32)
    found = changes(model, jnp.asarray(prompt.center, jnp.float32)[None] + v).argmax(1)
    assert (found == prompt.near(0 * radius).logits.argmax()).all()


def test_too_many_places_are_refused():
    prompt = Prompt(make("default"), [1] * 80)
    with pytest.raises(ValueError, match="can stand in 82,160 places"):
        prompt.substituted(3)
    with pytest.raises(ValueError, match="take a shorter prompt"):
        prompt.substituted(81)
