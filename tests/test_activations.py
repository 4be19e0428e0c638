"""Sizes of activations: against a forward pass block by block in NumPy, and under their certified bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.activations import measure
from lipzoo.models import GPT, GPTConfig

CONFIGS = {
    "gpt": GPTConfig(width=16, depth=3, heads=2, zero_init=False, separator=0),
    "baseline": GPTConfig(
        width=16, depth=2, heads=2, norm="rms", residual="plain", activation="relu2", zero_init=False, window=3
    ),
    "lipsformer": GPTConfig("lipsformer", width=16, depth=2, heads=2, softmax_scale=12.0, zero_init=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_those_of_a_forward_pass_and_within_their_bounds(name):
    gpt = GPT(20, CONFIGS[name], key=jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 20, (3, 12)).astype(np.int32)
    rows = measure(gpt, tokens)
    mask = gpt.mask(jnp.asarray(tokens[0]))
    assert (mask.documents is not None) == (name == "gpt")

    places = [[gpt.embedding(jnp.asarray(window)) for window in tokens]]
    for index in range(gpt.config.depth):
        block = gpt.stack.block(index)
        masks = [gpt.mask(jnp.asarray(window)) for window in tokens]
        places.append([block.masked(x, mask) for x, mask in zip(places[-1], masks, strict=True)])
    places.append([gpt(jnp.asarray(window)) for window in tokens])
    assert [row.place for row in rows] == ["embedding", *(f"block {i}" for i in range(gpt.config.depth)), "logits"]
    for row, outputs in zip(rows, places, strict=True):
        out = np.stack(outputs).astype(np.float64)
        assert row.rms == pytest.approx(np.sqrt((out**2).mean()), rel=1e-4)
        assert row.largest_rms == pytest.approx(np.sqrt((out**2).mean(-1)).max(), rel=1e-4)
        assert row.largest >= np.abs(out).max() * (1 - 1e-5)
        assert row.largest_rms <= row.bound * (1 + 1e-5)


def test_entries_inside_a_block_count():
    config = dataclasses.replace(CONFIGS["baseline"], activation="gelu", gelu_divisor=1e-3)
    gpt = GPT(20, config, key=jax.random.key(0))
    assert measure(gpt, np.zeros((1, 4), np.int32))[1].largest > 100
