"""Layers of images: what they do entry by entry, and bounds against attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.layers.absolute import Abs
from lipzoo.layers.image import ChannelsFirst, ChannelsLast, Crop, Patches, Shift
from lipzoo.layers.linear import Affine, Pointwise
from lipzoo.layers.sorting import GroupSort
from lipzoo.testing import check_bound
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.geometry import COLUMN, ENTRIES
from lipzoo.theory.space import SpaceError, Tokens, Vector
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Weight, exact_norm
from tests.conftest import svd_norm

IMAGE = Vector((4, 6, 8))


def pointwise(key, bias=False):
    column = Weight(0.3 * jax.random.normal(key, (5, 1)), "w.bias", COLUMN) if bias else None
    return Pointwise(Weight(jax.random.normal(key, (5, 8)), "w"), column)


LAYERS = {
    "channels last": lambda key: ChannelsLast(8, 4, 6),
    "channels first": lambda key: ChannelsFirst(),
    "crop": lambda key: Crop(1, 2, 2, 3),
    "patches": lambda key: Patches(2),
    "shift": lambda key: Shift(),
    "circular shift of all": lambda key: Shift(1.0, "circular"),
    "pointwise": pointwise,
    "biased pointwise": lambda key: pointwise(key, bias=True),
    "abs of half": lambda key: Abs(0.5),
    "maxmin": lambda key: GroupSort(),
    "groupsort": lambda key: GroupSort(4),
}


def matrix_of(layer, space):
    """The Jacobian at a point, by automatic differentiation."""
    x = jax.random.normal(jax.random.key(5), space.shape)
    return np.asarray(jax.jacobian(layer)(x)).reshape(-1, space.size)


@pytest.mark.parametrize("name", LAYERS)
def test_bounds_stand_attacks_and_are_attained(name):
    layer = LAYERS[name](jax.random.key(0))
    space = Vector((8 * 4 * 6,)) if name == "channels last" else IMAGE
    found = check_bound(layer, space, seeds=1, steps=15)
    jacobian = matrix_of(layer, space)
    sigma = float(svd_norm(jacobian))
    assert sigma <= found.lipschitz * (1 + 1e-6)
    assert sigma >= 0.99 * found.lipschitz
    assert layer.bound(Bound.start(space), exact_norm).space.shape == jax.eval_shape(layer, jnp.ones(space.shape)).shape


@pytest.mark.parametrize("name", LAYERS)
def test_ellipsoids_contain_what_moves(name):
    """L of an ellipsoid from a ball and from a dense matrix, against the Jacobian's."""
    layer = LAYERS[name](jax.random.key(0))
    space = Vector((8 * 4 * 6,)) if name == "channels last" else IMAGE
    reach, size = Bound.start(space), space.size
    draw = np.random.default_rng(0).normal(size=(size, size)) / 8
    for incoming, root in (
        (Ellipsoid(None, size, None, 0.25), np.eye(size) / 2),
        (Ellipsoid(draw @ draw.T, size), draw),
    ):
        image = layer.spread(incoming, reach, Steering(exact_norm))
        jacobian = matrix_of(layer, space)
        assert np.linalg.norm(jacobian @ root, 2) <= float(image.lipschitz) * (1 + 1e-6)


def test_permutations_keep_the_middle_of_a_ball_of_inputs():
    layer, x = ChannelsLast(2, 4, 4), np.arange(32.0)
    around = Around(x, 0.5)
    image = layer.spread(Ellipsoid(None, 32, around), Bound.start(Vector((32,))), Steering(exact_norm))
    np.testing.assert_array_equal(image.around.center, np.asarray(layer(jnp.asarray(x))).reshape(-1))
    patched = Patches(2).spread(image, Bound.start(Vector((4, 4, 2))), Steering(exact_norm))
    np.testing.assert_array_equal(patched.around.center, np.asarray(Patches(2)(layer(jnp.asarray(x)))).reshape(-1))
    first = ChannelsFirst().spread(image, Bound.start(Vector((4, 4, 2))), Steering(exact_norm))
    np.testing.assert_array_equal(first.around.center, x)


def test_channels_go_last():
    x = np.arange(24.0)
    np.testing.assert_array_equal(ChannelsLast(2, 3, 4)(jnp.asarray(x)), np.moveaxis(x.reshape(2, 3, 4), 0, -1))


def test_channels_go_first_and_a_crop_keeps_what_lies_in_it():
    x = np.arange(4 * 6 * 3.0).reshape(4, 6, 3)
    np.testing.assert_array_equal(ChannelsFirst()(jnp.asarray(x)), np.moveaxis(x, -1, 0))
    np.testing.assert_array_equal(Crop(1, 2, 3, 4)(jnp.asarray(x)), x[1:4, 2:6])
    for bad in ((-1, 0, 1, 1), (0, 0, 0, 1)):
        with pytest.raises(ValueError, match="a crop needs a place inside the image"):
            Crop(*bad)
    with pytest.raises(ValueError, match="a crop up to the pixel 5×1 was given an image of 4×6"):
        Crop(0, 0, 5, 1)(jnp.asarray(x))


def test_patches_are_squares_of_pixels():
    x = np.arange(4 * 6 * 3.0).reshape(4, 6, 3)
    patches = Patches(2)(jnp.asarray(x))
    for row in range(2):
        for column in range(3):
            square = x[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[row, column], square.reshape(-1))


@pytest.mark.parametrize("border", ["zero", "circular"])
def test_a_shift_moves_a_quarter_of_the_moving_channels_in_each_direction(border):
    x = np.random.default_rng(0).normal(size=(5, 6, 16))
    moved = np.asarray(Shift(0.5, border)(jnp.asarray(x)))
    expected = x.copy()
    for start, axis, by in ((8, 0, 1), (10, 0, -1), (12, 1, 1), (14, 1, -1)):
        part = np.roll(x[..., start : start + 2], by, axis)
        if border == "zero":
            edge = [slice(None)] * 3
            edge[axis] = slice(0, 1) if by > 0 else slice(-1, None)
            part[tuple(edge)] = 0
        expected[..., start : start + 2] = part
    np.testing.assert_array_equal(moved, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("layer", "space"),
    [
        (ChannelsLast(3, 4, 4), Vector((47,))),
        (ChannelsFirst(), Vector((8,))),
        (Crop(0, 3, 4, 4), IMAGE),
        (Crop(0, 0, 1, 1), Tokens(8)),
        (Patches(4), IMAGE),
        (Patches(2), Vector((16,))),
        (Shift(), Vector((8,))),
        (Shift(), Tokens(8)),
        (GroupSort(3), IMAGE),
        (Abs(), Tokens(8)),
        (pointwise(jax.random.key(0)), Vector((4, 6, 7))),
        (pointwise(jax.random.key(0)), Vector((8,))),
    ],
    ids=str,
)
def test_what_is_no_such_image_is_refused(layer, space):
    with pytest.raises(SpaceError):
        layer.bound(Bound.start(space), exact_norm)


def test_batches_are_told_to_be_vmapped():
    with pytest.raises(ValueError, match=r"for a batch, jax\.vmap"):
        pointwise(jax.random.key(0)).__wrapped__ if False else pointwise(jax.random.key(0))(jnp.ones((4, 6, 7)))
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction"):
            Shift(bad)
    with pytest.raises(ValueError, match="fraction"):
        Abs(-0.1)
    with pytest.raises(ValueError, match="patches of 4×4"):
        Patches(4)(jnp.ones((6, 4, 1)))


def test_gains_of_large_images_need_no_matrix():
    gain = Affine(Weight(jnp.arange(1.0, 9.0).reshape(8, 1, 1), "gain", ENTRIES))
    space = Vector((32, 32, 8))
    image = gain.spread(Ellipsoid(None, space.size, None, 0.25), Bound.start(space), Steering(exact_norm))
    assert image.is_ball
    assert 4 <= float(image.lipschitz) <= 4 * (1 + 1e-9)
