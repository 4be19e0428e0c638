"""Products of matrices, against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.theory.products import small_gram
from tests.theory.test_norms import sample

pytestmark = pytest.mark.optimized
SHAPES = [(1, 1), (2, 5), (24, 24), (10, 256), (256, 40), (3, 130, 300), (260, 256)]


@pytest.mark.parametrize("shape", [*SHAPES, (128, 500), (129, 130)])
def test_the_small_gram_matrix_is_symmetric_and_that_of_numpy(shape):
    matrix = np.asarray(sample(shape, 1, "random"), np.float32)
    gram = np.asarray(small_gram(jnp.asarray(matrix)))
    wide = matrix.astype(np.float64) if shape[-2] <= shape[-1] else matrix.astype(np.float64).mT
    expected = wide @ wide.mT
    np.testing.assert_allclose(gram, expected, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(gram, gram.mT, atol=1e-6 * np.abs(expected).max())
