"""Norms of convolutions against dense matrices by brute force, and what follows from them for constraints."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import CONSTRAINTS, SpectralNormalize, Step, SvdCap
from lipzoo.constraints.seal import seal
from lipzoo.layers.convolution import Conv2d
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.theory.convolution import Convolution
from lipzoo.theory.weight import Weight, exact_norm, gram_norm, set_caps
from tests.conftest import svd_norm

CASES = [
    ((5, 5), 3, 1, 1, "zero"),
    ((5, 4), 3, 1, 1, "circular"),
    ((6, 5), 3, 2, 1, "zero"),
    ((6, 8), 3, 2, 2, "circular"),
    ((6, 6), 2, 2, 1, "zero"),
    ((7, 6), 2, 3, 1, "zero"),
    ((5, 6), 4, 1, 2, "zero"),
    ((7, 8), 5, 2, 4, "zero"),
    ((4, 4), 4, 1, 1, "circular"),
    ((5, 7), 1, 2, 1, "zero"),
    ((2, 6), 3, 1, 1, "zero"),
]


def kernel(geometry, into=4, out=8, seed=0, batch=()):
    shape = (*batch, out, into // geometry.groups * geometry.kernel**2)
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Weight(jnp.asarray(array), "kernel", geometry)


GUARANTEED = ("spectral-normalize", "stiefel", "soft-cap", "hard-cap", "svd-cap")
gram_in_jit = jax.jit(gram_norm)


def dense(weight):
    """The matrix of a convolution, entry by entry as its definition says, on images (channels, height, width)."""
    g, array = weight.geometry, np.asarray(weight.array, np.float64)
    (h, w), (ho, wo), out = g.size, g.out_size, array.shape[0]
    part, k, p = array.shape[1] // g.kernel**2, g.kernel, max(g.kernel - g.stride, 0) // 2
    array, matrix = array.reshape(out, part, k, k), np.zeros((out, ho, wo, part * g.groups, h, w))
    for o, i, j, a, b in itertools.product(range(out), range(ho), range(wo), range(k), range(k)):
        y, x = g.stride * i + a - p, g.stride * j + b - p
        first = o // (out // g.groups) * part
        if g.padding == "circular":
            y, x = y % h, x % w
        if 0 <= y < h and 0 <= x < w:
            matrix[o, i, j, first : first + part, y, x] += array[o, :, a, b]
    return matrix.reshape(out * ho * wo, -1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_norms_are_upper_bounds_of_those_of_the_dense_matrix(case):
    weight = kernel(Convolution(*case))
    norm, exact = svd_norm(dense(weight)), exact_norm(weight)
    assert norm <= exact <= norm * (1 + 1e-11 if case[-1] == "circular" or case[1] <= case[2] else 1.35)
    assert exact <= float(gram_in_jit(weight)) <= exact * 1.003
    absolute = weight.with_array(jnp.abs(weight.array))
    assert svd_norm(dense(absolute)) <= weight.geometry.absolute_norm(np.asarray(weight.array))
    assert weight.geometry.distance(np.asarray(weight.array)) == exact


def test_what_pads_with_zeros_is_exact_on_images_that_are_large():
    """The largest frequency of a kernel of one sign is 0, which more and more of an image sees."""
    excess = []
    for side in (4, 8, 16):
        weight = kernel(Convolution((side, side)), into=1, out=1)
        weight = weight.with_array(jnp.abs(weight.array))
        excess.append(exact_norm(weight) / svd_norm(dense(weight)) - 1)
    assert excess[0] > excess[1] > excess[2] > 0
    assert excess[2] < 0.03


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_norms_at_every_scale(value):
    weight = kernel(Convolution((5, 5)), batch=(2,))
    weight = weight.with_array(weight.array * jnp.float32(value))
    exact, gram = exact_norm(weight), np.asarray(gram_in_jit(weight), np.float64)
    assert exact.shape == gram.shape == (2,)
    assert (exact <= gram).all()
    assert (gram <= exact * 1.003 + 1e-35).all()
    slopes = jax.jit(jax.grad(lambda w: gram_norm(w).sum()))(weight).array
    assert jnp.isfinite(slopes).all()


def test_the_norm_in_jit_is_differentiable():
    weight = kernel(Convolution((5, 5), groups=2))
    direction = jax.random.normal(jax.random.key(0), weight.array.shape)
    slope = jnp.sum(jax.jit(jax.grad(lambda a: gram_norm(weight.with_array(a))))(weight.array) * direction)
    ahead, behind = (float(exact_norm(weight.with_array(weight.array + s * direction))) for s in (1e-3, -1e-3))
    assert float(slope) == pytest.approx((ahead - behind) / 2e-3, rel=0.02)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_step_of_muon_is_larger_than_it_says(case):
    gradient = kernel(Convolution(*case))
    sup = 1 + 1e-5

    def sign(x):
        u, _, vt = np.linalg.svd(np.asarray(x), full_matrices=False)
        return jnp.asarray(u @ vt)

    for array in (gradient.array, jnp.abs(gradient.array), jnp.ones_like(gradient.array)):
        step = gradient.geometry.steepest(array, sign, 1e6)
        assert svd_norm(dense(gradient.with_array(step))) <= sup
        assert float(jnp.sum(array * step)) > 0
    largest = svd_norm(dense(gradient.with_array(step)))
    assert largest > 0.5 * sup  # Where all taps agree, nearly all that unfolding may do is done.


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[7]], ids=str)
@pytest.mark.parametrize("name", GUARANTEED)
def test_constraints_hold_the_norm_of_the_convolution(case, name):
    weight = kernel(Convolution(*case))
    for cap, scale in ((0.5, 1.0), (2.0, 1e-3), (3.0, 30.0), (1.0, 1e30)):
        moved = weight.with_array(weight.array * jnp.float32(scale))
        (held,) = jax.tree.leaves(set_caps(Conv2d(moved), {"kernel": cap}).project(CONSTRAINTS[name]()))
        norm = exact_norm(weight.with_array(held))
        assert norm <= cap
        if scale >= 1:
            assert norm >= 0.98 * cap
        np.testing.assert_allclose(held / held[0, 0], weight.array / weight.array[0, 0], rtol=1e-5)


def test_a_kernel_is_held_by_division_whatever_caps_are_asked_for():
    weight = kernel(Convolution((5, 5)))
    assert ConstraintConfig(constraint="stiefel").of(weight) == SpectralNormalize()
    free = SvdCap().apply(weight)
    assert (free.array == weight.array).all()


def test_a_kernel_is_sealed():
    module = set_caps(Conv2d(kernel(Convolution((5, 5)))), {"kernel": 0.7})
    sealed = seal(module)
    assert 0.7 * (1 - 1e-6) <= exact_norm(sealed.weight) <= 0.7


def test_a_held_kernel_is_moved_by_no_more_than_it_says():
    geometry, cap = Convolution((5, 5)), 1.0
    for seed in range(5):
        weight = kernel(geometry, seed=seed)
        for size in (0.3, 0.999, 1.0, 1.001, 1.4):
            array = weight.array * jnp.float32(size / exact_norm(weight))
            held = geometry.hold(array, lambda x: SpectralNormalize()(x, cap=cap, step=Step()))
            moved = geometry.exact_norm(np.asarray(held, np.float64) - np.asarray(array, np.float64))
            norm = float(geometry.exact_norm(np.asarray(array)))
            said = geometry.moves(array.shape, lambda shape, n: SpectralNormalize().moves(shape, cap, n), norm)
            assert moved <= said <= max(norm - cap, 0) + 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 4), 9), "does not fit an image of 4×4"),
        (((1, 8), 3), "does not fit"),
        (((2, 8), 3, 1, 1, "circular"), "does not fit"),
        (((5, 4), 3, 2, 1, "circular"), "does not divide 5"),
        (((4, 4), 0), "at least 1"),
    ],
)
def test_what_is_no_convolution_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Convolution(*arguments)


def test_what_is_no_kernel_is_refused():
    with pytest.raises(ValueError, match="3×3 kernel has the shape"):
        Convolution((4, 4)).rms_factor((4, 10))
    with pytest.raises(ValueError, match="divisible by 3"):
        Convolution((4, 4), groups=3).rms_factor((4, 9))
    with pytest.raises(ValueError, match="NaN or infinite"):
        exact_norm(kernel(Convolution((4, 4))).with_array(jnp.full((2, 9), jnp.nan)))
