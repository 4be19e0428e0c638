"""The mean of the weights: what it is, that it stays under the caps, and that it is stored, resumed and certified."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.cli.run import train
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import make_mesh
from lipzoo.theory.weight import Weight, weights
from lipzoo.train.average import blend, capped
from lipzoo.train.checkpoint import load
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from tests.conftest import SMALL_RUN, svd_norm
from tests.recipe.test_recipe import make


def test_it_is_the_mean_by_powers_of_the_decay():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(200, 3, 4))
    for decay in (0.5, 0.99, 0.9999):
        average = Weight(jnp.full((3, 4), 7.0), "w")  # What it begins with is forgotten at once.
        for clock, array in enumerate(seen):
            now = Weight(jnp.asarray(array, jnp.float32), "w")
            average = blend(average, now, jnp.float32(decay), jnp.int32(clock))
            shares = np.float64(np.float32(decay)) ** np.arange(clock, -1, -1)
            mean = np.tensordot(shares / shares.sum(), seen[: clock + 1], 1)
            np.testing.assert_allclose(average.array, mean, atol=2e-5)


def steps(recipe, count, mesh="1"):
    """The states of a training on digits."""
    mesh = make_mesh(mesh)
    state, step = init_state(recipe, mesh), step_of(recipe, mesh)
    stream = load_digits().batches(batch_size=recipe.data.batch_size, count=count, seed=0)
    for batch in stream:
        state, _ = step(state, batch)
        yield state


@pytest.mark.parametrize("constraint", ["soft-cap", "spectral-normalize", "stiefel"])
def test_the_mean_of_capped_weights_is_capped(constraint):
    """Also where all weights lie at their caps, at a high learning rate, and nothing is sealed in float64."""
    recipe = make(width=16, batch_size=32, steps=60, lr=2.0, sigma_max=0.9, constraint=constraint, ema=0.9)
    *_, state = steps(recipe, 60)
    for seal in (True, False):
        held = dataclasses.replace(recipe, constraint=dataclasses.replace(recipe.constraint, seal=seal))
        for weight, now in zip(weights(capped(held, state.average)), weights(state.model), strict=True):
            assert svd_norm(weight.array) <= 0.9
            assert not np.array_equal(weight.array, now.array)


def test_training_goes_on_as_without_it():
    """But for the rounding of another compilation."""
    recipe = make(width=16, batch_size=32, steps=5)
    averaged = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, ema=0.9))
    *_, plain = steps(recipe, 5)
    *_, beside = steps(averaged, 5)
    assert plain.average is None
    for a, b in zip(weights(plain.model), weights(beside.model), strict=True):
        np.testing.assert_allclose(a.array, b.array, atol=1e-6)


def test_it_is_the_same_on_a_mesh():
    recipe = make(width=16, batch_size=32, steps=5, ema=0.9)
    *_, one = steps(recipe, 5)
    *_, many = steps(dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, mesh="4x2")), 5, "4x2")
    for a, b in zip(weights(one.average), weights(many.average), strict=True):
        np.testing.assert_allclose(a.array, b.array, atol=1e-5)


def test_a_run_keeps_validates_resumes_and_certifies_it(tmp_path, capsys):
    recipe = make(**{**SMALL_RUN, "steps": 40, "ema": 0.9})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(recipe, whole, resume=False) == 0
    assert "of the mean of the weights: loss" in " ".join(capsys.readouterr().out.split())
    assert train(recipe, parts, resume=False) == 0
    for path in (parts / "checkpoints" / "40", parts / "ema"):  # As if it had been killed after step 20.
        path.rename(tmp_path / path.name)
    assert train(recipe, parts, resume=True) == 0
    for item in ("model", "average"):
        assert load(parts, item=item).sha256 == load(whole, item=item).sha256
    assert load(whole / "ema").sha256 == load(whole, item="average").sha256 != load(whole).sha256
    certificate = json.loads((whole / "ema" / "certificate.json").read_text())
    assert certificate["a_priori"]["caps_hold"]
    assert certificate["weights_sha256"] == load(whole / "ema").sha256
    told = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(told) if "val_loss" in record)
    assert last["ema_val_lipschitz"] <= certificate["a_priori"]["lipschitz"]
    assert {"ema_val_loss", "ema_val_accuracy", "ema_val_certified_accuracy"} <= last.keys()
    assert train(recipe, whole, resume=True) == 0  # A run that is complete is certified again, and nothing else.


def test_all_leaves_are_of_their_own_memory():
    state = init_state(make(width=16, batch_size=32, ema=0.9), make_mesh())
    places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(places)) == len(places)
