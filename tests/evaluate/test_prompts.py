"""Bounds around a prompt, against random and sought changes of its embedded tokens, and all other tokens."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import SvdCap
from lipzoo.evaluate.prompts import Moved, Prompt
from lipzoo.layers.near_attention import _weights
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


@functools.lru_cache
def make(name, size=1.5):
    model = GPT(11, CONFIGS[name], cap=1.0, key=jax.random.key(1)).project(SvdCap())
    return map_weights(lambda w: w.with_array(w.array * (1 if w.geometry.single else size)), model)


@functools.lru_cache
def runner(name):
    """The last token's logits of sequences of embedded tokens, in batches of one size, compiled once."""
    model = make(name)
    run = jax.jit(jax.vmap(lambda x: model.logits(model.stack(x))[-1]))

    def changes(x):
        padded = np.zeros((512, *x.shape[1:]), np.float32)
        padded[: len(x)] = x
        return np.asarray(run(padded), np.float64)[: len(x)]

    return changes


def directions(count, time, size, seed=0):
    v = np.random.default_rng(seed).normal(size=(count, time, size))
    return v / np.sqrt((v**2).mean(-1, keepdims=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_change_of_the_embedded_tokens_moves_logits_further(name):
    model, prompt, changes = make(name), Prompt(make(name), TOKENS), runner(name)
    center = prompt.center.astype(np.float32)
    still = changes(center[None])[0]

    def range_(v):
        change = model.logits(model.stack(center + v))[-1] - still.astype(np.float32)
        return change.max() - change.min()

    climb = jax.jit(jax.vmap(jax.grad(range_)))
    for radius in (0.01, 0.3):
        moved = prompt.near(np.full(len(TOKENS), radius))
        np.testing.assert_allclose(moved.logits, still, atol=2e-4)
        v = (radius * directions(64, len(TOKENS), 16)).astype(np.float32)
        for _ in range(15):
            slope = np.asarray(climb(v))
            v = v + radius * slope / (np.sqrt((slope**2).mean(-1, keepdims=True)) + 1e-9)
            v = radius * v / np.sqrt((v**2).mean(-1, keepdims=True))
        for shift in (v, radius * directions(256, len(TOKENS), 16, 1)):
            change = changes(center + shift) - still
            assert (abs(change).max(0) <= moved.change + 1e-4).all()
            assert (change.max(1) - change.min(1)).max() <= moved.range + 1e-4


def test_single_tokens_move_what_comes_after_alone():
    prompt, changes = Prompt(make("sharp"), TOKENS), runner("sharp")
    for index in range(len(TOKENS)):
        radius = np.zeros(len(TOKENS))
        radius[index] = 0.5
        moved = prompt.near(radius)
        v = np.zeros((256, len(TOKENS), 16))
        v[:, index] = 0.5 * directions(256, 1, 16, index)[:, 0]
        change = changes(prompt.center + v) - moved.logits
        assert (abs(change).max(0) <= moved.change + 1e-4).all()
        assert moved.range < prompt.near(np.full(len(TOKENS), 0.5)).range


@pytest.mark.parametrize("name", ["default", "sharp"])
def test_no_substitution_moves_a_probability_further(name):
    model, prompt = make(name), Prompt(make(name), TOKENS)
    moved, places = prompt.substituted(1)
    assert len(places) == 1
    p, low, high = moved.probabilities
    assert p.sum() == pytest.approx(1)
    run = jax.jit(lambda tokens: model(tokens))
    for index, token in itertools.product(range(len(TOKENS)), range(11)):
        other = np.array(TOKENS)
        other[index] = token
        logits = np.asarray(run(jnp.asarray(other)))[-1].astype(np.float64)
        q = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert (q >= low - 1e-6).all()
        assert (q <= high + 1e-6).all()
        assert (p * np.log(p / q)).sum() <= moved.kl + 1e-6
    pairs, _ = prompt.substituted(2)
    assert pairs.range >= moved.range


def test_local_is_smaller_than_global_and_neither_reaches_too_far():
    prompt, changes = Prompt(make("sharp"), TOKENS), runner("sharp")
    radius = np.full(len(TOKENS), 0.05)
    assert prompt.near(radius).range < prompt.anywhere(0.05).range
    local, whole = prompt.reach(), prompt.reach(local=False)
    assert 0 < whole < local
    found = changes(prompt.center + local * directions(512, len(TOKENS), 16)).argmax(1)
    assert (found == prompt.near(0 * radius).logits.argmax()).all()


def test_too_many_places_are_refused():
    prompt = Prompt(make("default"), [1] * 80)
    with pytest.raises(ValueError, match="can stand in 82,160 places"):
        prompt.substituted(3)
    with pytest.raises(ValueError, match="take a shorter prompt"):
        prompt.substituted(81)


def test_a_key_whose_weight_vanishes_can_still_be_attended():
    scores = np.array([[[0.0, -np.inf], [0.0, -746.0]]])
    seen = np.tril(np.ones((2, 2), bool))
    weight, most, change = _weights(scores, np.full((1, 2, 2), 380.0), seen)
    assert weight[0, 1].tolist() == pytest.approx([1.0, 0.0])
    assert most[0, 1, 1] > 0.999999
    assert change[0, 1, 1] > 0.999999
    rng = np.random.default_rng(0)
    z, sigma = rng.normal(size=(1, 6, 6)) * 5, abs(rng.normal(size=(1, 6, 6)))
    weight, most, change = _weights(z, sigma, np.tril(np.ones((6, 6), bool)))
    for _ in range(200):
        moved = np.where(np.tril(np.ones((6, 6), bool)), z + rng.choice([-1, 1], z.shape) * sigma, -np.inf)
        p = np.exp(moved - moved.max(2, keepdims=True))
        p = p / p.sum(2, keepdims=True)
        assert (p <= most).all()
        assert (abs(p - weight) <= change).all()


@pytest.mark.parametrize(("logits", "range_"), [([50.0, 0.0], 60.0), ([0.0, -740.0], 760.0), ([800.0, 0.0], 900.0)])
def test_probabilities_near_0_and_1_keep_their_room(logits, range_):
    p, low, high = Moved(np.array(logits), np.zeros(2), range_).probabilities
    assert p.sum() == pytest.approx(1)
    shift = logits[0] - logits[1] - range_  # The likeliest at its least.
    assert low[0] <= 1 / (1 + np.exp(-shift)) <= 1
    assert high[1] >= 1 / (1 + np.exp(shift)) * (1 - 1e-9)


def test_nearly_equal_rows_and_large_ones_are_told_apart():
    model = make("default")
    rows = 1e3 * np.random.default_rng(0).normal(size=(1, 16)).repeat(11, 0).astype(np.float32)
    rows[5:, :3] = np.nextafter(rows[5:, :3], np.float32(np.inf))
    head = model.head.weight.with_array(jnp.asarray(rows))
    model = eqx.tree_at(lambda m: m.head.weight, model, head)
    moved = Prompt(model, TOKENS).near(np.full(len(TOKENS), 0.5))
    difference = (rows[5].astype(np.float64) - rows[0]).astype(np.float64)
    hidden = Prompt(model, TOKENS)
    radius = moved.change.max() / (np.linalg.norm(rows.astype(np.float64), axis=1).max() * 4)
    assert moved.range >= np.linalg.norm(difference) * 4 * radius * 0.99
    assert hidden.near(np.zeros(len(TOKENS))).range > 0


@pytest.mark.parametrize(
    ("tokens", "temperature", "message"),
    [((), 1.0, "at least one token"), (TOKENS, -1.0, "must be positive"), ((1, 4, 2), 1.0, "of one document")],
)
def test_what_bounds_do_not_speak_of_is_refused(tokens, temperature, message):
    config = dataclasses.replace(CONFIGS["default"], separator=4)
    model = GPT(11, config, cap=1.0, key=jax.random.key(1))
    with pytest.raises(ValueError, match=message):
        Prompt(model, tokens, temperature)
    with pytest.raises(ValueError, match="at least 0"):
        Prompt(model, (4, 2), 1.0).near([-0.1, 0.0])
