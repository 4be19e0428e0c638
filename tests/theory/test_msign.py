"""Orthogonalizing polynomials: suprema against dense sampling, iterations against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.theory import msign
from tests.theory.test_norms import sample

pytestmark = pytest.mark.optimized

NAMES = sorted(msign.POLYNOMIALS)
NARROW = {"polar-express", "turbo"}
"""Diverge in bfloat16, and are refused there."""
SHAPES = [(1, 9), (24, 24), (32, 48), (256, 10), (64, 640), (3, 16, 80)]
SPECTRA = ["random", "flat", "steep", "rank one"]


def evaluate(rows, x):
    for a, b, c in rows:
        x = a * x + b * x**3 + c * x**5
    return x


@pytest.mark.parametrize(
    ("name", "published"),
    [("six-row", 0.99933), ("dion", 1.14502), ("classic", 1.20237), ("polar-express", None), ("turbo", None)],
)
def test_sup_is_the_maximum_over_the_unit_interval(name, published):
    rows = msign.POLYNOMIALS[name]
    x = np.concatenate([np.linspace(0, 1, 1_000_001), np.geomspace(1e-9, 1, 100_001)])
    largest = np.abs(evaluate(rows, x)).max()
    assert largest <= msign.sup(rows) * (1 + 1e-14)
    assert msign.sup(rows) == pytest.approx(largest, rel=1e-6)
    if published:
        assert msign.sup(rows) == pytest.approx(published, abs=5e-6)


@pytest.mark.parametrize("rounds", [3, 5, 8])
@pytest.mark.parametrize("low", [1e-1, 1e-3])
def test_polar_express_improves_on_any_other_first_row(rounds, low):
    rows = msign.polar_express(rounds, low)
    below, above = msign.image(rows, low, 1.0)
    newton = ((1.875, -1.25, 0.375),) * rounds
    assert max(1 - below, above - 1) <= 1 - msign.image(newton, low, 1.0)[0] + 1e-12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_singular_value_exceeds_the_stated_supremum(name, shape, spectrum, dtype):
    rows = msign.POLYNOMIALS[name]
    if name in NARROW and dtype == "bfloat16":
        pytest.skip("refused: diverges in bfloat16")
    matrix = jnp.asarray(sample(shape, 0, spectrum))
    result = np.asarray(msign.msign(matrix, rows, jnp.dtype(dtype))).astype(np.float64)
    largest = np.linalg.svd(result, compute_uv=False).max()
    assert largest <= msign.sup(rows) * (1 + msign.ROUNDING_MARGIN)
    assert result.shape == shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("spectrum", "tolerance"), [("random", 2e-3), ("flat", 2e-4), ("steep", 0.25)])
def test_float32_iteration_matches_the_polynomial_of_the_svd(name, shape, spectrum, tolerance):
    rows = msign.POLYNOMIALS[name]
    matrix = sample(shape, 1, spectrum)
    exact = matrix.astype(np.float64)
    if name == "turbo":
        wide = exact if shape[-2] <= shape[-1] else exact.mT
        wide /= np.sqrt(abs(wide @ wide.mT).sum(-1, keepdims=True))  # In place, so `exact` too.
        assert np.linalg.norm(exact, 2, axis=(-2, -1)).max() <= 1 + 1e-12
    else:
        exact /= np.linalg.norm(exact, axis=(-2, -1), keepdims=True)
    u, sigma, vt = np.linalg.svd(exact, full_matrices=False)
    expected = (u * evaluate(rows, sigma)[..., None, :]) @ vt
    result = np.asarray(msign.msign(jnp.asarray(matrix), rows))
    assert np.linalg.norm(result - expected, 2, axis=(-2, -1)).max() <= tolerance


@pytest.mark.parametrize("shape", [(24, 24), (10, 256)])
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e-12, 1e12, 1e19, 1e37])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_any_size_stay_bounded(shape, scale, dtype):
    """At a norm of 1e19, whose square is no number, the largest singular value once came out as 35."""
    matrix = jnp.asarray(sample(shape, 2) * np.float32(scale))
    result = np.asarray(msign.msign(matrix, msign.SIX_ROW, jnp.dtype(dtype)))
    assert np.isfinite(result).all()
    largest = np.linalg.svd(result.astype(np.float64), compute_uv=False)[0]
    assert largest <= msign.sup(msign.SIX_ROW) * (1 + msign.ROUNDING_MARGIN)
    if scale >= 1e-30:
        assert largest > 0.9


def test_what_rounding_lifts_above_the_supremum_is_divided_by():
    """Rows of a slope of 1e4 amplify rounding errors far beyond 1."""
    wild = ((1e4, 0.0, 0.0), (1e-4, 0.0, 0.0), (1.0, 0.0, 0.0)) * 2
    matrix = jnp.asarray(sample((10, 60), 0, "steep"))
    result = np.asarray(msign.msign(matrix, wild, jnp.bfloat16)).astype(np.float64)
    assert np.linalg.svd(result, compute_uv=False).max() <= msign.sup(wild) * (1 + msign.ROUNDING_MARGIN)


def test_long_matrices_cost_fewer_operations_than_the_direct_iteration():
    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    matrix = jnp.zeros((64, 768))
    gram = flops(lambda x: msign.approximate(x, msign.SIX_ROW), matrix)
    direct = flops(lambda x: msign.iterate(x, msign.SIX_ROW), matrix)
    assert gram < direct / 2.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (4, 12), (10, 30), (10, 64)])
def test_thousands_of_small_matrices_stay_under_the_stated_supremum(name, shape):
    """Ill-conditioned small matrices are where rounding grows most from row to row."""
    rows = msign.POLYNOMIALS[name]
    matrices = np.random.default_rng(0).normal(size=(1500, *shape))
    u, sigma, vt = np.linalg.svd(matrices, full_matrices=False)
    steep = (u * (sigma ** np.linspace(1, 12, sigma.shape[-1]))[..., None, :]) @ vt
    for kind in (matrices, steep):
        for dtype in ("float32",) if name in NARROW else ("float32", "bfloat16"):
            result = np.asarray(msign.msign(jnp.asarray(kind, jnp.float32), rows, jnp.dtype(dtype)))
            largest = np.linalg.svd(result.astype(np.float64), compute_uv=False).max()
            assert largest <= msign.sup(rows) * (1 + msign.ROUNDING_MARGIN)


@pytest.mark.parametrize("shape", [(3, 7), (40, 40), (20, 130), (2, 16, 90)])
@pytest.mark.parametrize("spectrum", [*SPECTRA, "zero", "rows of zero"])
def test_balanced_rows_have_a_norm_of_at_most_1(shape, spectrum):
    matrix = np.array(sample(shape, 3, "random" if "zero" in spectrum else spectrum), np.float64)
    matrix[..., : {"zero": None, "rows of zero": 2}.get(spectrum, 0), :] = 0
    factors = np.asarray(msign.balance(jnp.asarray(matrix @ matrix.mT, jnp.float32)), np.float64)
    norms = np.linalg.norm(factors * matrix, 2, axis=(-2, -1))
    assert (norms <= 1 + 1e-5).all()
    assert spectrum == "zero" or (norms > 0.3).all()
