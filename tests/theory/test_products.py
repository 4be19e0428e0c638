"""Products of matrices: what is proved of norms by a factorization, against NumPy's SVD in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.theory.products import is_under, small_gram
from tests.theory.test_norms import sample

pytestmark = pytest.mark.optimized
SHAPES = [(1, 1), (2, 5), (24, 24), (10, 256), (256, 40), (3, 130, 300), (260, 256)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", ["random", "flat", "steep", "rank one"])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_what_is_said_to_be_under_a_limit_is(shape, spectrum, scale):
    matrix = np.asarray(sample(shape, 0, spectrum), np.float64)
    matrix = np.float32(scale * matrix / np.linalg.norm(matrix, 2, axis=(-2, -1), keepdims=True))
    largest = np.linalg.norm(matrix.astype(np.float64), 2, axis=(-2, -1))
    for ratio in (0.5, 1 - 1e-3, 1 - 1e-5, 1 - 1e-6, 1 - 1e-7, 1 + 1e-7, 1 + 1e-5, 1 + 1e-3, 1.02):
        limit = scale * ratio
        said = np.asarray(is_under(jnp.asarray(matrix), limit))
        assert said.shape == shape[:-2]
        assert not (said & (largest > limit)).any()
        assert ratio < 1.02 or said.all()  # It is of use.


def test_nothing_is_said_of_what_is_no_number_and_zero_is_under_anything():
    assert not bool(is_under(jnp.full((4, 6), jnp.nan), 10.0))
    assert not bool(is_under(jnp.full((4, 6), jnp.inf), 10.0))
    assert bool(is_under(jnp.zeros((4, 6)), 1e-3))


@pytest.mark.parametrize("shape", [*SHAPES, (128, 500), (129, 130)])
def test_the_small_gram_matrix_is_symmetric_and_that_of_numpy(shape):
    matrix = np.asarray(sample(shape, 1, "random"), np.float32)
    gram = np.asarray(small_gram(jnp.asarray(matrix)))
    wide = matrix.astype(np.float64) if shape[-2] <= shape[-1] else matrix.astype(np.float64).mT
    expected = wide @ wide.mT
    np.testing.assert_allclose(gram, expected, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(gram, gram.mT, atol=1e-6 * np.abs(expected).max())
