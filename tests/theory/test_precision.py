"""Formats of numbers: float8 emulated, float64 for a run, and the same step whether jax has 64 bits or not."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import SoftCap, Step
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import batched, make_mesh
from lipzoo.theory.precision import FLOAT8, rounded
from lipzoo.theory.weight import weights
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from tests.conftest import svd_norm
from tests.recipe.test_recipe import make

RUN = """
import sys
import jax
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
from tests.theory.test_precision import report
report(sys.argv[1], sys.argv[2])
"""


def steps(dtype, optimizer):
    """Losses of three steps on digits in a format, and the state after them."""
    recipe = make(width=16, batch_size=64, steps=3, optimizer=optimizer, model_dtype=dtype, project_dtype=dtype)
    recipe.check()
    mesh, digits, losses = make_mesh(), load_digits(), []
    state, train_step = init_state(recipe, mesh), step_of(recipe, mesh)
    for batch in digits.batches(batch_size=64, count=3, seed=0):
        state, metrics = train_step(state, jax.device_put(batch, batched(mesh)))
        losses.append(float(metrics["loss"]))
    for weight in weights(recipe.dressed(state.model)):
        assert svd_norm(weight.array).max() <= weight.cap
    return losses, state


def report(dtype, optimizer):
    losses, state = steps(dtype, optimizer)
    assert all(leaf.dtype.itemsize <= 4 for leaf in jax.tree.leaves(state)), "states are stored in 32 bits"
    assert dtype != "float64" or jnp.zeros(()).dtype == jnp.float64
    print(*losses)


@pytest.mark.parametrize(("x64", "dtype", "optimizer"), [("1", "float32", "adamw"), ("0", "float64", "muon")])
def test_steps_with_64_bits_are_those_without(x64, dtype, optimizer, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", x64)
    done = subprocess.run([sys.executable, "-c", RUN, dtype, optimizer], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected, _ = steps("float32", optimizer)
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], expected, rtol=1e-5)


def test_steps_in_float8_come_close_to_those_in_float32():
    exact, (found, _) = steps("float32", "muon")[0], steps(FLOAT8, "muon")
    np.testing.assert_allclose(found, exact, rtol=0.02)
    assert found != exact


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 700.0, 1e30])
def test_float8_keeps_three_bits_at_any_scale(scale):
    matrix = np.random.default_rng(0).normal(size=(2, 30, 20)).astype(np.float32) * np.float32(scale)
    found = np.asarray(rounded(jnp.asarray(matrix), FLOAT8)).astype(np.float32)
    assert len(np.unique(np.frexp(np.abs(found[found != 0]))[0])) <= 8
    large = np.abs(matrix) > 1e-2 * scale
    assert (np.abs(found / matrix - 1)[large] <= 2.0**-4).all()


def test_float64_asks_for_64_bits():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        SoftCap(project_dtype="float64")(jnp.ones((3, 3)), cap=1.0, step=Step(0.1))
