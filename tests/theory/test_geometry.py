"""Geometries: their norms are those of NumPy's SVD, and no direction of unit norm is steeper than theirs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.optim import OptimizerConfig
from lipzoo.theory import msign
from lipzoo.theory.geometry import COLUMN, DENSE, ENTRIES, OFFSETS, ROWS
from lipzoo.theory.weight import Weight, exact_norm, gram_norm
from tests.conftest import svd_norm

CASES = [(DENSE, (6, 4)), (DENSE, (3, 5, 8)), (COLUMN, (7, 1)), (ROWS, (5, 6, 1)), (ENTRIES, (4, 1, 1))]


@pytest.mark.parametrize(("geometry", "shape"), CASES, ids=str)
def test_norms_are_upper_bounds_of_those_of_an_svd(geometry, shape, getkey):
    weight = Weight(jax.random.normal(getkey(), shape), "w", geometry)
    norms = svd_norm(weight.array)
    assert (norms <= exact_norm(weight)).all()
    np.testing.assert_allclose(exact_norm(weight), norms, rtol=1e-12)
    assert (norms <= np.asarray(gram_norm(weight))).all()
    np.testing.assert_allclose(gram_norm(weight), norms, rtol=0.01)


@pytest.mark.parametrize(("geometry", "shape"), CASES, ids=str)
def test_no_direction_of_unit_norm_is_steeper(geometry, shape, getkey):
    gradient = jax.random.normal(getkey(), shape)
    sup = OptimizerConfig(polynomial="polar-express").update_sup(Weight(gradient, "w", geometry))
    steepest = geometry.steepest(gradient, lambda x: msign.msign(x, msign.POLYNOMIALS["polar-express"]), 1e6)
    assert (svd_norm(steepest) <= sup).all()
    best = float(jnp.sum(gradient * steepest))
    for _ in range(50):
        other = jax.random.normal(getkey(), shape)
        other = other / jnp.asarray(svd_norm(other), jnp.float32)[..., None, None]
        assert float(jnp.sum(gradient * other)) <= best * 1.02


def test_rows_that_hardly_occur_are_not_moved_by_noise():
    small = ROWS.steepest(jnp.full((1, 4, 1), 1e-3), lambda x: x, 16.0)
    np.testing.assert_allclose(small, 0.016, rtol=1e-6)


def test_what_a_geometry_says_of_itself():
    assert [g.layer_axes for g in (DENSE, COLUMN, ROWS, ENTRIES, OFFSETS)] == [2, 2, 3, 3, 2]
    assert [g.single for g in (DENSE, COLUMN, ROWS, ENTRIES)] == [False, True, True, True]
    assert not OFFSETS.bounded
    assert len({DENSE, COLUMN, ROWS, ENTRIES, OFFSETS}) == 5


def test_a_geometry_that_is_none_is_told():
    code = "import jax.numpy as jnp; from lipzoo.theory.weight import Weight; Weight(jnp.ones((4, 1)), 'b', 'bias')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # Without the checks of types.
    assert "ValueError: the geometry of b must be one such as DENSE, COLUMN" in done.stderr
