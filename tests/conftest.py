"""Eight fake CPU devices, strict promotion, and what several test files share."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def getkey():
    """A function that returns a new random key at each call."""
    counter = itertools.count()
    return lambda: jax.random.key(next(counter))


def svd_norm(matrix):
    """The RMS→RMS norm by NumPy alone: the oracle for everything that claims to bound it."""
    matrix = np.asarray(matrix).astype(np.float64)
    return np.linalg.svd(matrix, compute_uv=False)[..., 0] * np.sqrt(matrix.shape[-1] / matrix.shape[-2])


@pytest.fixture(scope="session")
def cifar_dir():
    """The cache with CIFAR-10 in it; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("LIPZOO_DATA_DIR", "~/.cache/lipzoo")).expanduser()
    if not (folder / "cifar-10-batches-bin" / "test_batch.bin").exists():
        pytest.skip("CIFAR-10 is not in LIPZOO_DATA_DIR")
    return folder
