"""What a step can do at most: no constraint, no step of real training, and no attack on two weights goes beyond it."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import CONSTRAINTS, Step
from lipzoo.data import TextConfig
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import make_mesh
from lipzoo.models import MLP, GPTConfig
from lipzoo.recipe.largest_step import _moved, fitted, largest_step, within_limit
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.theory.excess import largest_gram_excess
from lipzoo.theory.geometry import OFFSETS, ROWS
from lipzoo.theory.norms import gram_norm
from lipzoo.theory.weight import map_weights, weights
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from tests.conftest import svd_norm
from tests.recipe.test_recipe import make

KNOWN = ("soft-cap", "spectral-normalize", "weight-decay")
"""Constraints that say how far they move a matrix."""


def spectra(rng, size, reach):
    yield np.full(size, reach)
    yield np.linspace(0, reach, size)
    yield reach * rng.uniform(size=size)
    yield np.r_[reach, np.zeros(size - 1)]


@pytest.mark.optimized
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("shape", [(12, 30), (40, 40), (1, 64), (64, 1)])
def test_constraints_move_no_matrix_further_than_they_say(name, shape):
    """All spectra up to the norm that a step can reach, from steps of a thousandth of the cap to seven caps."""
    rng, constraint = np.random.default_rng(0), CONSTRAINTS[name]()
    size = min(shape)
    apply = jax.jit(lambda matrix, cap, update: constraint(matrix, cap=cap, step=Step(update)))
    for cap, update in [(1.0, 1e-3), (3.0, 0.1), (0.7, 0.3), (2.0, 2.0), (1.0, 7.0)]:
        reach = cap + update
        for sigma in spectra(rng, size, reach * (1 - 1e-6)):
            u, v = (np.linalg.qr(rng.normal(size=(n, size)))[0] for n in shape)
            matrix = ((u * sigma) @ v.T).astype(np.float32)
            moved = np.asarray(apply(matrix, jnp.float32(cap), jnp.float32(update)), np.float64) - matrix
            norm = np.linalg.svd(moved, compute_uv=False)[0]
            assert norm <= constraint.moves(shape, cap, reach) < 8 * update + 0.05 * cap


@pytest.mark.optimized
@pytest.mark.parametrize(("side", "part"), [(64, 1.0), (256, 0.5), (256, 0.75), (512, 0.75)])
def test_projections_of_half_a_space_are_divided_by_no_more_than_is_said(side, part):
    """What rounding does to an upper bound of their norm is more than to that of an orthogonal matrix."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(side, side)))[0][:, : int(part * side)] for _ in range(2))
    matrix = (0.999999 * u @ v.T).astype(np.float32)
    size = np.linalg.norm(matrix.astype(np.float64), 2)
    held = CONSTRAINTS["spectral-normalize"]()
    moved = np.asarray(held(jnp.asarray(matrix), cap=jnp.float32(1), step=Step(1e-6)), np.float64) - matrix
    assert float(gram_norm(jnp.asarray(matrix))) / size - 1 <= largest_gram_excess((side, side), "float32", 6)
    assert np.linalg.norm(moved, 2) <= held.moves((side, side), 1.0, size)


def trained(recipe, data, steps):
    """Pairs of states, before and after a step, and its metrics."""
    mesh = make_mesh()
    state, step = init_state(recipe, mesh), step_of(recipe, mesh)
    for batch in data.batches(batch_size=recipe.data.batch_size, count=steps, seed=0):
        before = jax.tree.map(np.asarray, state.model)
        state, metrics = step(state, batch)
        yield before, jax.tree.map(np.asarray, state.model), jax.device_get(metrics)


def text_recipe(**options):
    config = GPTConfig(depth=2, width=16, heads=2, zero_init=False, relative_bias=8, softmax_scale=1.0)
    recipe = Recipe("text", config, TextConfig("pydoc", seq_len=32, batch_size=4).complete())
    given = make(measure_steps=True, steps=8, **options)
    parts = {name: getattr(given, name) for name in ("optimizer", "constraint", "training")}
    return dataclasses.replace(recipe, **parts)


def distance(weight, difference):
    if weight.geometry == OFFSETS:
        return abs(difference).max()
    if weight.geometry == ROWS:
        return np.sqrt((difference**2).mean(-2)).max()
    return svd_norm(difference).max()


HIGH_AND_LOW = (2.0, 0.03)
CASES = [
    *[("digits", "muon", name, HIGH_AND_LOW) for name in ("soft-cap", "spectral-normalize", "hard-cap", "stiefel")],
    ("digits", "muon", "weight-decay", (0.3,)),
    ("digits", "adamw", "soft-cap", (0.05,)),
    ("text", "muon", "soft-cap", HIGH_AND_LOW),
    ("text", "muon", "spectral-normalize", HIGH_AND_LOW),
    ("text", "adamw", "soft-cap", (0.05,)),
]


@pytest.mark.parametrize(("kind", "optimizer", "constraint", "rates"), CASES)
def test_no_step_of_real_training_moves_anything_further(kind, optimizer, constraint, rates):
    for lr in rates:  # Which are arguments of one compiled step.
        check_steps(kind, optimizer, constraint, lr)


def check_steps(kind, optimizer, constraint, lr):
    decay = 0.5 if constraint == "weight-decay" else 0.0
    options = {"optimizer": optimizer, "constraint": constraint, "lr": lr, "sigma_max": 2.0, "weight_decay": decay}
    if kind == "digits":
        recipe = make(width=12, batch_size=32, steps=8, bias=True, measure_steps=True, zero_init=False, **options)
        data = load_digits()
    else:
        recipe = text_recipe(**options)
        data = recipe.data.load(0)
    recipe.check()
    most = largest_step(recipe)
    assert math.isfinite(most.rms)
    limits = {weight.name: _moved(recipe, weight, lr) for weight in weights(recipe.abstract_model())}
    for before, after, metrics in trained(recipe, data, 8):
        for old, new in zip(weights(before), weights(after), strict=True):
            difference = new.array.astype(np.float64) - old.array.astype(np.float64)
            assert distance(new, difference) <= limits[new.name], new.name
        assert 0 < metrics["largest_logit_change"] <= most.logit
        assert 0 < metrics["largest_kl"] <= most.kl


def test_steps_of_weights_that_all_point_one_way_come_near_to_it():
    """Positive matrices of rank one at their caps, shrunk by the largest step: the worst of MLPs, but for a factor."""
    recipe = make(width=16, depth=3, lr=0.05, sigma_max=1.0, constraint="spectral-normalize", activation="relu")
    most = largest_step(recipe)

    model = recipe.abstract_model()
    assert isinstance(model, MLP)

    def ones(shrunk):
        def array(weight):
            step = recipe.optimizer.lr * weight.share * recipe.optimizer.update_sup(weight)
            rows, columns = weight.array.shape
            return weight.with_array(jnp.full((rows, columns), (1.0 - shrunk * step) / columns))

        return map_weights(array, model)

    one, other = ones(0), ones(1)
    x = jnp.ones(64)
    moved = float(jnp.sqrt(((one(x) - other(x)) ** 2).mean()))
    assert 0.3 * most.rms < moved <= most.rms


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "adamw", "constraint": "none"}, {"constraint": "none"}, {"constraint": "spectral-hammer"}],
    ids=str,
)
def test_without_caps_that_hold_nothing_is_said(options):
    found = largest_step(make(**options))
    assert found.rms == math.inf
    assert "nothing is proved" in found.told
    assert set(found.to_json().values()) == {None}
    with pytest.raises(UserError, match="cannot be kept: nothing is proved, since no cap holds"):
        within_limit(make(**options, max_step_kl=1.0))


def test_learning_rates_that_could_move_more_are_refused_or_lowered():
    recipe = make(max_step_kl=0.01, lr=0.5)
    with pytest.raises(UserError, match=r"--lr 0.5 could move a prediction by .* lower it to 0.0\d+, or add --fit-lr"):
        within_limit(recipe)
    fitting = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, fit_lr=True))
    lowered = within_limit(fitting)
    assert largest_step(lowered).kl <= 0.01 < largest_step(lowered, 1.02 * lowered.optimizer.lr).kl
    assert within_limit(lowered) == lowered  # As when the run is resumed.
    with pytest.raises(UserError, match="even a step at"):
        within_limit(dataclasses.replace(fitting, training=dataclasses.replace(fitting.training, max_step_kl=1e-12)))
    free = make(max_step_kl=1e3, lr=0.5)
    assert within_limit(free) == free


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"constraint": "weight-decay", "max_step_kl": 0.1}, "needs a --weight-decay"),
        ({"constraint": "weight-decay", "lipschitz": 5.0}, "needs a --weight-decay"),
        ({"constraint_overrides": ("head=weight-decay",), "max_step_kl": 1.0}, "needs a --weight-decay"),
        ({"sigma_max": 0.0, "lipschitz": 2.0}, "the cap of layers.0 must lie"),
        ({"sigma_max": -1.0, "max_step_kl": 1.0}, "the cap of layers.0 must lie"),
        ({"sigma_max_overrides": ("head=0",), "lipschitz": 2.0}, "the cap of head must lie"),
    ],
    ids=str,
)
def test_what_has_no_caps_is_refused_before_any_are_computed(options, words):
    with pytest.raises(UserError, match=words):
        fitted(make(width=16, **options))


def test_bounds_beyond_all_numbers_are_said_to_be_so():
    for depth, cap in ((40, 1e6), (400, 3.0)):
        found = largest_step(make(width=8, depth=depth, sigma_max=cap))
        assert found.told
        assert json.loads(json.dumps(found.to_json(), allow_nan=False)).keys() == found.to_json().keys()


def test_a_slower_step_is_not_worse_where_weights_decay():
    """Then a weight is further from its cap at the peak of the learning rate than below it."""
    recipe = make(lr=1e-6, weight_decay=5.0, sigma_max=100.0)
    for weight in weights(recipe.abstract_model()):
        whole = _moved(recipe, weight, 1e-6)
        assert all(_moved(recipe, weight, factor * 1e-6) <= whole for factor in (1e-3, 0.1, 0.5, 0.9))


def test_overridden_rates_count():
    one, other = make(lr=0.01), make(lr=0.01, lr_overrides=("head=0.5",))
    assert largest_step(other).rms > 5 * largest_step(one).rms


def test_the_bound_of_a_prediction_is_hoeffdings():
    """KL of softmaxes whose logits differ by a range g is at most g²/8, which two classes come near to."""
    rng, found = np.random.default_rng(0), largest_step(make(lr=0.01))
    for _ in range(300):
        z, d = rng.normal(size=(2, found.classes)) * rng.uniform(0, 5, size=(2, 1))
        d *= found.rms / np.sqrt((d**2).mean())
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        assert abs(d).max() <= found.logit
        assert np.log((p * np.exp(d)).sum()) - (p * d).sum() <= found.kl


@pytest.mark.parametrize("loss", ["annealed", "pairwise"])
def test_of_losses_that_are_no_cross_entropy_nothing_is_said(loss):
    """Margins of pairs move with the weights, and what is annealed has slopes above 1."""
    plain, other = (largest_step(make(width=8, loss=name, margin=1.0)) for name in ("cross-entropy", loss))
    assert other.to_json()["loss_nats"] is None
    assert "loss" not in other.told
    assert math.isfinite(other.kl)
    assert (other.kl, other.logit) == (plain.kl, plain.logit)
