"""Radii of networks as they run: where float32 breaks what real arithmetic certifies, and where nothing must."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.measured import ExactNorms
from lipzoo.data.batches import Split
from lipzoo.evaluate.radii import pair_constants, radii_of
from lipzoo.evaluate.rounding import Rounding
from lipzoo.evaluate.run import Effort, evaluate
from lipzoo.models import MLP, Linear
from lipzoo.theory.functions import arithmetic
from lipzoo.theory.weight import Weight


def rounding(model, dtype):
    return Rounding(jax.tree.map(np.asarray, model), ExactNorms(), arithmetic(dtype))


def radii(model, pixels, dtype):
    split = Split(pixels, np.zeros(len(pixels), np.int32))
    return radii_of(model, split, 255, pair_constants(model), rounding=rounding(model, dtype))


def nearly_equal_rows(size=600):
    """Two rows that differ by a few units in the last place: exactly, their difference is all that counts, however
    small, so that the plane between the classes may be far from an input; in float32 both sums round by more."""
    rng = np.random.default_rng(0)
    row = rng.normal(size=size).astype(np.float32)
    return Linear(Weight(jnp.asarray(np.stack([row, row + rng.normal(size=size).astype(np.float32) * 3e-7])), "w"))


def test_a_radius_of_real_arithmetic_that_float32_breaks_is_not_that_of_what_runs():
    """In small, the attacks of Jia & Rinard (2021, arXiv 2003.03021) and Jin et al. (2022, arXiv 2205.10159)."""
    model, rng = nearly_equal_rows(), np.random.default_rng(1)
    pixels = rng.integers(0, 256, size=(60, 600)).astype(np.uint8)
    found, broken = radii(model, pixels, "float32"), 0
    run = jax.jit(jax.vmap(model))
    for x, radius, running, y in zip(
        pixels / np.float32(255), found.radius, found.running, found.prediction, strict=True
    ):
        moves = rng.normal(size=(200, 600))
        moves *= 0.5 * radius / np.maximum(np.linalg.norm(moves, axis=1, keepdims=True), 1e-9)
        tried = (x + moves).astype(np.float32)
        distance = np.linalg.norm(tried.astype(np.float64) - x.astype(np.float64), axis=1)
        wrong = np.asarray(run(tried)).argmax(1) != y
        if radius > 0.1 and (wrong & (distance < radius)).any():
            broken += 1
            assert running <= distance[wrong].min()
    assert broken >= 10
    assert (found.running <= found.radius).all()
    exact = radii(model, pixels, "float64")
    assert (exact.running >= 0.9 * exact.radius).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "maxmin", "tanh"])
def test_nothing_within_the_radius_of_what_runs_has_another_class(activation, dtype, getkey):
    """As it runs in that format, at random inputs on the border of each ball, and the steepest ones."""
    model = MLP(12, 16, 4, depth=3, activation=activation, zero_init=False, cap=1.0, key=getkey())
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(40, 12)).astype(np.uint8)
    around, found = rounding(model, dtype), radii(model, pixels, dtype)
    assert (found.running <= found.radius).all()
    assert (found.running > 0).sum() >= {"float32": 38, "bfloat16": 1, "float8_e4m3fn": 0}[dtype]
    for x, radius, y in zip(pixels / np.float32(255), found.running, found.prediction, strict=True):
        slopes = np.asarray(jax.jacobian(model)(jnp.asarray(x)))
        moves = np.concatenate([rng.normal(size=(50, 12)), slopes - slopes[y], np.zeros((1, 12))])
        moves *= radius / np.maximum(np.linalg.norm(moves, axis=1, keepdims=True), 1e-12)
        tried = (x + moves).astype(np.float32)
        inside = np.linalg.norm(tried.astype(np.float64) - x.astype(np.float64), axis=1) <= radius
        assert (around.logits(tried).argmax(1) == y)[inside].all()


def test_an_evaluation_says_what_rounding_costs(digits_run):
    effort = Effort(images=20, tightness=False, tighten=0)
    single, half = (evaluate(digits_run, effort=effort, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for evaluation, name in ((single, "float32"), (half, "bfloat16")):
        value = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
        assert value["arithmetic"]["format"] == name
        pairs = zip(value["running_certified_accuracy"], value["certified_accuracy"], strict=True)
        assert all(running <= exact for running, exact in pairs)
        assert f"in {name}" in evaluation.columns
        assert not value["violations"]
    assert (half.radii.running <= single.radii.running + 1e-12).all()
    assert single.radii.running.max() > 0
    assert "as it runs" in single.summary
