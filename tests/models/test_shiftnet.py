"""ShiftNets: sizes, bounds against attacks, what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.measured import ExactNorms
from lipzoo.constraints import SpectralNormalize, Stiefel
from lipzoo.data.config import Sizes
from lipzoo.evaluate.radii import pair_constants
from lipzoo.models import ShiftNet, ShiftNetConfig
from lipzoo.models.shiftnet import ACTIVATIONS, SIZES
from lipzoo.testing import check_bound
from lipzoo.theory.bound import Bound
from lipzoo.theory.weight import map_weights, weights
from tests.conftest import svd_norm

SMALL = ShiftNetConfig(depth=2, width=8, patch=2, zero_init=False)
IMAGES = Sizes(2 * 8 * 8, 5, (2, 8, 8))


def net(key=0, cap=1.0, **options):
    return ShiftNet(IMAGES, dataclasses.replace(SMALL, **options), cap=cap, key=jax.random.key(key))


CASES = [{"activation": name} for name in ACTIVATIONS if name != "maxmin"] + [{"border": "circular", "head": "rows"}]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_bounds_stand_attacks(options):
    check_bound(net(**options), seeds=1, steps=12)


@pytest.mark.parametrize("head", ["matrix", "rows"])
def test_no_difference_of_logits_moves_by_more_than_its_constant(head):
    """Jacobians at many points, by automatic differentiation."""
    model = net(head=head)
    pairs = pair_constants(model)
    for seed in range(20):
        jacobian = np.asarray(jax.jacobian(model)(jax.random.normal(jax.random.key(seed), (IMAGES.inputs,))))
        differences = np.linalg.norm(jacobian[:, None] - jacobian[None], axis=-1)
        assert (differences <= pairs * (1 + 1e-5)).all()
    rows = np.asarray(weights(model)[-1].array)  # Before the head norms are kept, so pairs are those of its rows.
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.testing.assert_allclose(pairs, apart * np.sqrt(8 * 16 / IMAGES.inputs), rtol=1e-4)


def test_orthogonal_matrices_make_it_an_isometry_up_to_the_head():
    x = jax.random.normal(jax.random.key(1), (IMAGES.inputs,))
    model = net(border="circular")
    features = model.body.layers
    y = x
    for layer in features[:-1]:
        y = layer(y)
    root = np.sqrt(8 / 8)  # Patches have as many entries as channels.
    assert float(jnp.linalg.norm(y)) == pytest.approx(root * float(jnp.linalg.norm(x)), rel=1e-4)


@pytest.mark.parametrize("head", ["matrix", "rows"])
def test_fresh_weights_and_projected_ones_are_under_their_caps(head, getkey):
    model = net(cap=0.7, head=head)
    moved = map_weights(lambda w: w.with_array(w.array + jax.random.normal(getkey(), w.array.shape)), model)
    for held in (model, moved.project(SpectralNormalize())):
        for weight in weights(held):
            assert (weight.geometry.exact_norm(np.asarray(weight.array)) <= 0.7).all()
    assert Certificate.of(moved.project(SpectralNormalize())).caps_hold
    mix = weights(moved.project(Stiefel()))[2]
    np.testing.assert_allclose(np.linalg.svd(np.asarray(mix.array), compute_uv=False), 0.7, rtol=0.02)


def test_rows_are_held_one_by_one(getkey):
    head = weights(net(head="rows"))[-1]
    array = jax.random.normal(getkey(), head.array.shape)
    lengths = np.linalg.norm(np.asarray(array, np.float64), axis=1) * np.sqrt(array.shape[1])
    np.testing.assert_allclose(head.geometry.exact_norm(np.asarray(array)), lengths.max(), rtol=1e-12)
    assert float(svd_norm(array)) <= head.geometry.exact_norm(np.asarray(array))  # RMS → RMS.
    held = SpectralNormalize().apply(head.with_array(array))
    after = np.linalg.norm(np.asarray(held.array, np.float64), axis=1) * np.sqrt(array.shape[1])
    assert (after <= 1).all()
    np.testing.assert_allclose(after, np.minimum(lengths, 1), rtol=1e-2)
    step = head.geometry.steepest(array, lambda rows: rows / jnp.linalg.norm(rows, axis=-1, keepdims=True), 1.0)
    np.testing.assert_allclose(np.linalg.norm(step, axis=1) * np.sqrt(array.shape[1]), 1, rtol=1e-5)
    cut = head.geometry.cut(np.asarray(array, np.float64), 0.5)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1) * np.sqrt(array.shape[1]), np.minimum(lengths, 0.5))


def test_sizes_are_counted_and_can_be_overridden():
    for size, (depth, width) in SIZES.items():
        assert ShiftNetConfig(size=size).sizes == (depth, width)
    assert ShiftNetConfig(size="s", depth=3, width=10).sizes == (3, 10)
    model = net()
    matrices = sum(w.array.size for w in weights(model) if not w.name.endswith("bias"))
    assert SMALL.parameters(IMAGES) == matrices
    shares = {w.name: w.share for w in weights(model)}  # Blocks are two arrays of two each.
    assert shares["stem"] == shares["head"] == shares["blocks.mix"]
    assert 4 * shares["stem"] + 3 * shares["stem.bias"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"width": 7}, "--width"),
        ({"width": 4}, "--shift"),
        ({"patch": 3}, "--patch"),
        ({"shift": 0.0}, "--shift"),
        ({"activation": "groupsort", "width": 12}, "--width"),
    ],
)
def test_impossible_nets_are_refused(options, flag):
    with pytest.raises(ValueError, match=flag):
        net(**options)


def test_text_has_no_pixels():
    with pytest.raises(ValueError, match="it takes images"):
        ShiftNet(Sizes(65, 65), dataclasses.replace(SMALL, patch=1), key=jax.random.key(0))


def test_norms_may_be_asked_for_again_when_nobody_watches():
    """Blocks of a stack are copies wherever arrays are JAX's, and are measured anew."""
    norms, told = ExactNorms(), []
    model = net()
    Certificate.of(model, norms=norms, watch=lambda done, count: told.append(done))
    before = len(told)
    model.bound(Bound.start(model.takes), norms)
    assert len(told) == before > 0
