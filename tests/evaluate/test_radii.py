"""Certified radii: true of the nearest input of another class where that is known, and of all that attacks find."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import SvdCap
from lipzoo.data.batches import Split
from lipzoo.evaluate.radii import Radii, certified_radii, pair_constants, radii_of
from lipzoo.models import GPT, MLP, ConvexResidual, GPTConfig, Linear, ReLU, Scale, Sequential
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Vector
from lipzoo.theory.weight import Weight, exact_norm, weights
from tests.conftest import svd_norm


def linear(key, out, size, name):
    return Linear(Weight(jax.random.normal(key, (out, size)), name))


def test_for_a_linear_classifier_the_radius_is_the_distance_to_the_nearest_plane(getkey):
    model, x = linear(getkey(), 5, 12, "w"), np.random.RandomState(0).rand(200, 12).astype(np.float32)
    rows = np.asarray(model.weight.array).astype(np.float64)
    logits = x.astype(np.float64) @ rows.T
    prediction, _, radius = certified_radii(logits, pair_constants(model), limit=math.inf)
    for z, y, r in zip(logits, prediction, radius, strict=True):
        others = [j for j in range(5) if j != y]
        planes = [(z[y] - z[j]) / np.linalg.norm(rows[y] - rows[j]) for j in others]
        assert min(planes) * (1 - 1e-9) <= r <= min(planes)


NETWORKS = {
    "mlp": lambda key: MLP(10, 16, 4, depth=3, zero_init=False, cap=1.0, key=key),
    "scaled": lambda key: MLP(10, 16, 4, depth=3, zero_init=False, final_scale=7.0, bias=True, cap=1.5, key=key),
    "maxmin": lambda key: MLP(10, 16, 4, depth=3, zero_init=False, activation="maxmin", residual=0.5, key=key),
    "no linear map at the end": lambda key: Sequential([linear(key, 4, 10, "w"), ReLU()]),
    "residual at the end": lambda key: ConvexResidual(linear(key, 10, 10, "w"), 0.5),
    "scaled twice": lambda key: Sequential([linear(key, 4, 10, "w"), Scale(0.5), Scale(-3.0)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_pair_of_logits_moves_further_than_its_constant(name, getkey):
    model = NETWORKS[name](getkey())
    pairs = pair_constants(model)
    assert (np.diag(pairs) == 0).all()
    assert (pairs == pairs.T).all()
    x = jax.random.uniform(getkey(), (2000, 10))
    change = jax.random.normal(getkey(), (2000, 10)) * jnp.geomspace(1e-3, 1.0, 2000)[:, None]
    moved = np.asarray(jax.vmap(model)(x + change) - jax.vmap(model)(x)).astype(np.float64)
    size = np.linalg.norm(np.asarray(change), axis=1)
    gains = np.abs(moved[:, :, None] - moved[:, None, :]) / size[:, None, None]
    assert (gains.max(0) <= pairs * (1 + 1e-4)).all()
    # The slope along the gradient of each difference, where that is steepest.
    slopes = np.linalg.norm(np.asarray(jax.vmap(jax.jacobian(model))(x)), axis=-1)
    assert (slopes.max() <= pairs.max(initial=0)) or name in ("residual at the end", "no linear map at the end")


def test_rows_say_less_than_the_norm_of_the_whole(getkey):
    model = MLP(10, 16, 4, depth=3, zero_init=False, cap=1.0, key=getkey()).project(SvdCap())
    whole = float(model.bound(Bound.start(Vector((10,))), exact_norm).lipschitz)
    assert pair_constants(model).max() <= math.sqrt(2 * 4) * whole / math.sqrt(10) * (1 + 1e-9)
    first, second, head = (weight.array for weight in weights(model))
    features = svd_norm(first) * svd_norm(second)
    row = np.asarray(head).astype(np.float64)
    expected = np.linalg.norm(row[0] - row[1]) * math.sqrt(16) * features / math.sqrt(10)
    assert pair_constants(model)[0, 1] <= expected * (1 + 1e-9)


def test_equal_rows_never_change_places():
    same = Linear(Weight(jnp.ones((3, 4)), "w"))
    assert (pair_constants(same) < 1e-6).all()
    _, _, radius = certified_radii(np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), pair_constants(same), limit=9.0)
    assert radius.tolist() == pytest.approx([9.0, 0.0])


def test_logits_that_are_no_numbers_have_no_radius():
    pairs = np.ones((2, 2)) - np.eye(2)
    _, _, radius = certified_radii(np.array([[np.nan, 1.0], [np.inf, 0.0], [2.0, 1.0]]), pairs, limit=9.0)
    assert radius.tolist() == pytest.approx([0.0, 0.0, 1.0])


def test_batches_and_files_keep_the_order(getkey, tmp_path, monkeypatch):
    model = NETWORKS["mlp"](getkey())
    images = np.random.RandomState(0).randint(0, 17, (70, 10)).astype(np.uint8)
    split = Split(images, np.arange(70, dtype=np.int32) % 4)
    whole = radii_of(model, split, 16, pair_constants(model))
    monkeypatch.setattr("lipzoo.evaluate.radii.TOGETHER", 32)
    parts = radii_of(model, split, 16, pair_constants(model))
    np.testing.assert_allclose(parts.radius, whole.radius, rtol=1e-5)
    whole.save(tmp_path / "radii.npz")
    with np.load(tmp_path / "radii.npz") as stored:
        assert sorted(stored) == ["index", "label", "local_radius", "margin", "prediction", "radius", "running_radius"]
        np.testing.assert_array_equal(stored["radius"], whole.radius)


def test_certified_accuracy_counts_what_is_right_and_stays_so():
    radii = Radii(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.ones(4), np.array([0.2, 0.9, 0.5, 0.1]))
    assert radii.certified_accuracy([0.0, 0.1, 0.2, 0.5]) == [0.75, 0.5, 0.25, 0.0]


def test_an_ensemble_has_no_rows_of_one_classifier(getkey):
    with pytest.raises(ValueError, match="of an ensemble take one member"):
        pair_constants(Linear(Weight(jax.random.normal(getkey(), (2, 3, 4)), "w")))


def test_tokens_have_no_radius(getkey):
    with pytest.raises(ValueError, match="certified radii are of classifiers of one vector"):
        pair_constants(GPT(11, GPTConfig(width=8, heads=2, depth=1), key=getkey()))
