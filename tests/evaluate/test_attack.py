"""Attacks: as near as a linear classifier lets anybody come, inside their balls, never nearer than is proved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.evaluate.attack import Strength, attack, margin
from lipzoo.evaluate.radii import certified_radii, pair_constants
from lipzoo.models import MLP, Linear
from lipzoo.theory.weight import Weight

RADII = jnp.array([0.05, 0.1, 0.3])
FREE = Strength(steps=30, restarts=2, boundary_steps=80, box=False)


def found_by(model, images, labels, strength=FREE):
    keys = jax.random.split(jax.random.key(0), len(labels))
    return jax.device_get(
        jax.jit(jax.vmap(lambda x, y, key: attack(model, x, y, RADII, key, strength)))(images, labels, keys)
    )


def test_a_linear_classifier_is_fooled_at_the_nearest_plane(getkey):
    model = Linear(Weight(jax.random.normal(getkey(), (4, 10)), "w"))
    images = jax.random.uniform(getkey(), (60, 10))
    logits = np.asarray(jax.vmap(model)(images))
    labels = logits.argmax(1).astype(np.int32)
    exact = certified_radii(logits, pair_constants(model), limit=np.inf)[2]
    found = found_by(model, images, labels)
    assert (found.distance >= exact * (1 - 1e-4) - 1e-6).all()
    assert np.median(found.distance / exact) < 1.02
    assert (found.distance <= exact * 1.5).mean() > 0.95


@pytest.mark.parametrize("box", [True, False])
def test_nothing_is_found_nearer_than_the_certified_radius(getkey, box):
    model = MLP(12, 24, 5, depth=3, zero_init=False, final_scale=3.0, key=getkey())
    images = jax.random.uniform(getkey(), (50, 12))
    logits = np.asarray(jax.vmap(model)(images))
    labels = logits.argmax(1).astype(np.int32)
    radius = certified_radii(logits, pair_constants(model), limit=np.inf)[2]
    found = found_by(model, images, labels, Strength(30, 2, 80, box))
    assert (found.distance >= radius * (1 - 1e-4) - 1e-6).all()
    reached = np.isfinite(found.distance)
    assert reached.any()
    values = np.asarray(jax.vmap(model)(found.nearest))
    fooled = values.argmax(1) != labels
    assert (fooled | np.isclose(np.sort(values)[:, -1], np.sort(values)[:, -2], atol=1e-5))[reached].all()
    if box:
        assert (found.nearest >= 0).all()
        assert (found.nearest <= 1).all()


def test_the_true_class_grows_less_likely_with_the_radius(getkey):
    model = MLP(12, 24, 5, depth=3, zero_init=False, final_scale=3.0, key=getkey())
    images = jax.random.uniform(getkey(), (20, 12))
    labels = np.asarray(jax.vmap(model)(images)).argmax(1).astype(np.int32)
    found = found_by(model, images, labels)
    own = np.asarray(jax.nn.softmax(jax.vmap(model)(images)))[np.arange(20), labels]
    assert (np.diff(found.probability, axis=1) <= 0).all()
    assert (found.probability[:, 0] <= own + 1e-6).all()


def test_what_is_wrong_already_is_at_no_distance_and_what_cannot_change_at_an_infinite_one():
    rows = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    found = found_by(Linear(Weight(rows, "w")), jnp.array([[0.5, 0.5]]), np.array([1], np.int32))
    assert found.distance.tolist() == [0.0]
    constant = Linear(Weight(jnp.zeros((2, 2)), "w"), Weight(jnp.array([[1.0], [0.0]]), "b"))
    found = found_by(constant, jnp.array([[0.5, 0.5]]), np.array([0], np.int32))
    assert found.distance.tolist() == [np.inf]
    assert np.isfinite(found.nearest).all()


def test_margins():
    logits = jnp.array([1.0, 3.0, 2.5])
    assert float(margin(logits, jnp.asarray(1))) == pytest.approx(0.5)
    assert float(margin(logits, jnp.asarray(0))) == pytest.approx(-2.0)
