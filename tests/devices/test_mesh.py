"""Meshes: the same losses on every shape, states in equal parts, and no weight gathered for Muon."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.devices.mesh import batched, make_mesh, mesh_shape, place, process_rows, spread, stored
from lipzoo.system.errors import UserError
from lipzoo.theory import msign
from lipzoo.train.plan import resolve
from lipzoo.train.state import init_state
from lipzoo.train.step import make_train_step
from recipes.gpt145m import VARIANTS

STEPS = 10
BATCH, TOKENS = 8, 8
"""Few: with a vocabulary of 50,304, most of the time goes to the logits."""


def recipe(mesh):
    """The 145M recipe, small, on the real Wikipedia shards."""
    base = VARIANTS["sigma1"]
    model = dataclasses.replace(base.model, depth=3, width=16, heads=2, window=12, window_stages=1)
    data = dataclasses.replace(base.data, data="wikipedia_gpt2", batch_size=BATCH, seq_len=TOKENS, val_tokens=1000)
    optimizer = dataclasses.replace(base.optimizer, msign_dtype="float32", momentum_warmup=5)
    training = dataclasses.replace(base.training, steps=STEPS, mesh=mesh, model_dtype="float32", accum_steps=1)
    return dataclasses.replace(base, model=model, data=data, optimizer=optimizer, training=training)


def run(mesh_name):
    """Losses, and the compiled step as text."""
    config = recipe(mesh_name)
    config.check()
    mesh = make_mesh(mesh_name)
    rows, state = process_rows(mesh, BATCH), init_state(config, mesh)
    batches = config.data.load(0).batches(batch_size=BATCH, count=STEPS, seed=0, rows=rows)
    first = place(next(batches), mesh)
    plan, hyper = resolve(config)
    step = make_train_step(plan, mesh).lower(state, first, hyper).compile()
    losses = []
    for batch in [first, *(place(batch, mesh) for batch in batches)]:
        state, metrics = step(state, batch, hyper)
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses)), step.as_text(), sum(x.size for x in jax.tree.leaves(state.model))


@pytest.fixture(scope="module")
def one(wikipedia_dir):
    return run("1")[0]


def gathered_entries(text):
    """Entries of all results of all-gathers in a compiled step."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    return sum(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)


@pytest.mark.parametrize("mesh", ["8", "4x2", "1x8"])
def test_a_mesh_gives_the_losses_of_one_device_and_gathers_no_weights_for_muon(mesh, one):
    losses, text, count = run(mesh)
    np.testing.assert_allclose(losses, one, rtol=1e-4)
    assert losses[-1] < losses[0] - 0.1
    # Forward and backward gather the weights once (blocks cut along fsdp twice); the rest is a batch of activations.
    blocks = 3 * 12 * 16**2
    assert gathered_entries(text) <= count + blocks + 2 * BATCH * TOKENS * 16
    assert "all-to-all" in text


def test_states_are_stored_in_equal_parts(wikipedia_dir):
    config, mesh = recipe("4x2"), make_mesh("4x2")
    state = init_state(config, mesh)
    for leaf in jax.tree.leaves((state.model, state.opt_state)):
        parts = [shard.data.size for shard in leaf.addressable_shards]
        assert parts == [leaf.size // 8 if leaf.ndim else 1] * 8


@pytest.mark.parametrize("shape", [(12, 32, 64), (3, 2, 16, 24), (5, 7, 9), (48, 16), (50, 8, 1)])
def test_spreading_a_function_of_matrices_changes_nothing(shape):
    mesh = make_mesh("4x2")
    matrix = jax.random.normal(jax.random.key(0), shape)
    sign = functools.partial(msign.msign, rows=msign.SIX_ROW)
    cut = jax.device_put(matrix, stored(mesh, matrix))
    np.testing.assert_allclose(jax.jit(spread(mesh, sign))(cut), sign(matrix), atol=1e-4)


@pytest.mark.parametrize(("text", "shape"), [("8", (8, 1)), ("4x2", (4, 2)), ("0", None), ("2x", None), ("x", None)])
def test_meshes_by_name(text, shape):
    assert mesh_shape(text) == shape


def test_rows_of_the_only_process_are_all():
    mesh = make_mesh("4x2")
    assert process_rows(mesh, 16) == slice(0, 16)
    batch = place({"x": np.arange(16, dtype=np.float32)}, mesh)["x"]
    assert batch.sharding == batched(mesh)
    np.testing.assert_array_equal(batch, jnp.arange(16.0))


REFUSED = [
    ("--mesh takes a number", {"mesh": "2y"}),
    ("not divisible by --accum-steps 1 × --mesh 8x3", {"mesh": "8x3"}),
]


@pytest.mark.parametrize(("message", "change"), REFUSED)
def test_impossible_meshes_are_refused(message, change, wikipedia_dir):
    config = recipe("1")
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, training=dataclasses.replace(config.training, **change)).check()
