"""Upper bounds of singular values against NumPy's float64 SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.theory import norms
from tests.conftest import svd_norm

pytestmark = pytest.mark.optimized

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 5), (64, 64), (10, 100), (100, 10), (3, 8, 20), (2, 3, 20, 8)]


def sample(shape, seed, spectrum="random"):
    random = np.random.default_rng(seed)
    matrix = random.normal(size=shape)
    if spectrum == "random":
        return matrix.astype(np.float32)
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    size = sigma.shape[-1]
    spectra = {"flat": np.ones(size), "steep": np.geomspace(1, 1e-6, size), "rank one": np.eye(size)[0]}
    return ((u * spectra[spectrum]) @ vt).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", ["random", "flat", "steep", "rank one"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gram_norm_is_a_tight_upper_bound(shape, spectrum, scale):
    matrix = sample(shape, 0, spectrum) * np.float32(scale)
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[..., 0]
    bound = np.asarray(jax.jit(norms.gram_norm)(jnp.asarray(matrix)))
    assert bound.shape == shape[:-2]
    assert (bound >= exact).all()
    excess = min(shape[-2:]) ** (1 / 4 / 2**norms.GRAM_SQUARINGS)
    assert (bound <= exact * excess * (1 + 1e-4)).all()


@pytest.mark.parametrize("squarings", [0, 1, 3, 5])
def test_gram_norm_with_few_squarings_keeps_its_stated_excess(squarings):
    matrix = sample((64, 64), 1, "flat")
    bound = float(norms.gram_norm(jnp.asarray(matrix), squarings))
    assert 1 <= bound <= 64 ** (1 / 4 / 2**squarings) * (1 + 1e-4)


@pytest.mark.parametrize("shape", [(1, 1000), (64, 64), (30, 700), (700, 30), (2, 50, 50)])
def test_gram_norm_bounds_what_rounds_one_way(shape):
    """Sums of equal terms: constant and orthogonal matrices, and their absolute values."""
    u, _, vt = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    for matrix in (np.ones(shape), np.full(shape, 1 / 3), u @ vt, np.abs(u @ vt)):
        matrix = matrix.astype(np.float32)
        exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[..., 0]
        bound = np.asarray(norms.gram_norm(jnp.asarray(matrix)))
        assert (exact <= bound).all()
        assert (bound <= exact * (1 + norms.gram_excess(shape, jnp.float32))).all()


@pytest.mark.parametrize("power", [-140, -100, -60, 60, 120])
def test_norms_at_any_scale_are_those_at_scale_one(power):
    """Bit for bit, as long as the norm is a number that devices do not take for zero; an upper bound below, too."""
    matrix = sample((5, 9), 0)
    matrix /= np.abs(matrix).max()
    tiny = np.ldexp(matrix, power).astype(np.float32)
    exact = np.linalg.svd(tiny.astype(np.float64), compute_uv=False)[0]
    assert exact <= np.asarray(norms.gram_norm(jnp.asarray(tiny))).astype(np.float64)
    if power > -100:
        assert norms.gram_norm(jnp.asarray(tiny)) == np.ldexp(norms.gram_norm(jnp.asarray(matrix)), power)
        sigma, _, _ = norms.estimate_top_singular(jnp.asarray(tiny), jax.random.key(0))
        assert float(sigma) == pytest.approx(exact, rel=1e-4)


def test_gram_norm_of_zero_is_zero_and_its_gradient_is_finite():
    zero = jnp.zeros((4, 6))
    assert norms.gram_norm(zero) == 0
    assert jnp.isfinite(jax.grad(lambda w: norms.gram_norm(w))(zero)).all()


def test_gram_norm_gradient_is_the_top_singular_pair():
    matrix = sample((8, 12), 2)
    u, _, vt = np.linalg.svd(matrix)
    gradient = jax.grad(norms.gram_norm)(jnp.asarray(matrix))
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], vt[0]), atol=2e-3)


def test_gram_norm_of_bfloat16_bounds_the_stored_matrix():
    matrix = jnp.asarray(sample((40, 60), 3)).astype(jnp.bfloat16)
    exact = np.linalg.svd(np.asarray(matrix).astype(np.float64), compute_uv=False)[0]
    bound = norms.gram_norm(matrix)
    assert bound.dtype == jnp.float32
    assert exact <= float(bound) <= exact * 1.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_certified_norm_is_above_the_exact_one_by_its_margin_only(shape, dtype):
    matrix = sample(shape, 4).astype(dtype)
    exact = svd_norm(matrix)
    bound = norms.rms_norm(matrix)
    assert (bound > exact).all()
    assert (bound < exact * (1 + 1e-11)).all()


@pytest.mark.parametrize("size", [2, 16, 200])
def test_certified_norm_covers_matrices_whose_norm_is_known_exactly(size):
    ones = np.ones((size, size), np.float32)  # σ₁ = size, an integer.
    assert norms.spectral_norm(ones) >= size
    hadamard = np.array([[1.0]])
    while hadamard.shape[0] < size:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    order = hadamard.shape[0]
    assert norms.spectral_norm(hadamard) ** 2 >= order


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_certified_norm_refuses_what_has_no_norm(bad):
    matrix = np.ones((3, 3), np.float32)
    matrix[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        norms.spectral_norm(matrix)


def test_rms_to_max_norm_is_reached():
    matrix = sample((6, 9), 5).astype(np.float64)
    row = np.argmax(np.linalg.norm(matrix, axis=1))
    worst = matrix[row] / np.linalg.norm(matrix[row]) * np.sqrt(9)  # Unit RMS norm, along the longest row.
    bound = norms.rms_to_max_norm(matrix)
    gain = np.abs(matrix @ worst).max() * (1 - 1e-15)
    assert gain <= bound <= gain * (1 + 1e-5)


def test_estimate_is_a_lower_bound_of_the_norm_and_finds_the_top_pair(getkey):
    matrix = sample((3, 8, 20), 6)
    sigma, u, v = norms.estimate_top_singular(jnp.asarray(matrix), getkey())
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[..., 0]
    np.testing.assert_allclose(sigma, exact, rtol=1e-4)
    np.testing.assert_allclose(np.einsum("bi,bij,bj->b", u, matrix, v), exact, rtol=1e-4)
