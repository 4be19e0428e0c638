"""Losses against their formulas in NumPy, and what they promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.data.config import Sizes
from lipzoo.models import MLP, ShiftNet, ShiftNetConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import weights
from lipzoo.train.losses import Loss, distances, largest_distance

CLASSES = 5


def numbers(**values):
    return OptimizerConfig().hyper({"head": 1.0}, {"head": 1.0}, **values)


def softmax(u):
    e = np.exp(u - u.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected(name, z, y, *, t, m=0.0, s=0.0, gamma=5.0, rows=None):
    """By the formulas, one example after the other, in float64."""
    values = []
    for logits, label in zip(z.astype(np.float64), y, strict=True):
        margin = np.full(CLASSES, m)
        if name == "pairwise":
            bound = np.sqrt(2) * np.sqrt(CLASSES / rows.shape[1])
            margin = m * np.linalg.norm(rows[label] - rows, axis=1) / bound
        margin[label] = 0
        p = softmax(t * (logits + margin))
        labels = (1 - s) * np.eye(CLASSES)[label] + s / CLASSES
        loss = -(labels * np.log(p)).sum()
        values.append((1 - p[label]) ** gamma * loss if name == "annealed" else loss)
    return np.array(values)


CASES = [
    ("cross-entropy", {}),
    ("cross-entropy", {"m": 0.7}),
    ("cross-entropy", {"m": 0.7, "s": 0.1}),
    ("annealed", {"gamma": 5.0}),
    ("annealed", {"m": 0.3, "gamma": 2.0, "s": 0.2}),
    ("pairwise", {"m": 0.9}),
    ("pairwise", {"m": 0.9, "s": 0.1}),
]


@pytest.mark.parametrize(("name", "asked"), CASES)
def test_losses_are_their_formulas(name, asked, getkey):
    model = MLP(8, 6, CLASSES, zero_init=False, cap=1.0, key=getkey())
    z = jax.random.normal(getkey(), (16, CLASSES))
    y = jax.random.randint(getkey(), (16,), 0, CLASSES)
    m, s, gamma = asked.get("m", 0.0), asked.get("s", 0.0), asked.get("gamma", 5.0)
    hyper = numbers(temperature=1.7, margin=m, smoothing=s, annealing=gamma)
    found = Loss(name, m > 0, s > 0)(model, z, y, hyper)
    rows = np.asarray(weights(model)[-1].array, np.float64)
    np.testing.assert_allclose(found, expected(name, np.asarray(z), y, t=1.7, rows=rows, **asked), rtol=2e-5)


def test_annealing_takes_the_gradient_of_what_is_certain():
    hyper, y = numbers(annealing=5.0), jnp.array([0])

    def loss(z):
        return Loss("annealed")(None, z, y, hyper)[0]

    slope = [float(jnp.abs(jax.grad(loss)(jnp.array([[a, 0.0]]))).max()) for a in (0, 4, 9)]
    assert slope[0] > 1e3 * slope[1] > 0
    assert slope[2] < 1e-12


def test_distances_of_rows_and_their_slope_where_rows_are_the_same(getkey):
    rows = jax.random.normal(getkey(), (4, 7)).at[2].set(0).at[3].set(0)
    brute = np.linalg.norm(np.asarray(rows)[:, None] - np.asarray(rows)[None], axis=-1)
    np.testing.assert_allclose(distances(rows), brute, rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda rows: distances(rows).sum())(rows)).all()


@pytest.mark.parametrize("head", ["matrix", "rows"])
def test_no_pair_of_rows_under_the_cap_is_farther_apart(head, getkey):
    """The worst rows: opposite ones, each as long as the cap admits."""
    sizes = Sizes(3 * 16, CLASSES, (3, 4, 4))
    net = ShiftNet(sizes, ShiftNetConfig(depth=1, width=8, patch=2, head=head, zero_init=False), cap=1.3, key=getkey())
    last = weights(net)[-1]
    array = np.zeros(last.array.shape)
    array[0, 0], array[1, 0] = 1, -1
    array *= 1.3 / last.geometry.exact_norm(array)
    limit = float(largest_distance(last, jnp.float32(1.3)))
    assert distances(jnp.asarray(array, jnp.float32)).max() <= limit * (1 + 1e-6)


def test_pairwise_needs_what_it_measures():
    recipe = Recipe(training=TrainingConfig(loss="pairwise"))
    free = dataclasses.replace(recipe.constraint, constraint="none")
    with pytest.raises(UserError, match="--loss pairwise needs a cap on the last matrix"):
        dataclasses.replace(recipe, constraint=free).check()
    recipe.check()
