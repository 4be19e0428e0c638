"""The training step: what it computes, that it compiles once, and that guarantees hold after every real step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.constraints import CONSTRAINTS
from lipzoo.constraints.seal import seal
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import batched, make_mesh
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import exact_norm, filled, map_weights, weights
from lipzoo.train.evaluate import make_evaluate
from lipzoo.train.plan import resolve
from lipzoo.train.state import init_state, layer_norms
from lipzoo.train.step import forward, make_train_step, step_of
from tests.conftest import svd_norm
from tests.recipe.test_recipe import make

DIGITS = load_digits()


def run(recipe, steps, after=None):
    """Losses of real steps on digits; `after(state)` looks at each state."""
    recipe.check()
    mesh = make_mesh(recipe.training.mesh)
    state, train_step = init_state(recipe, mesh), step_of(recipe, mesh)
    stream = DIGITS.batches(batch_size=recipe.data.batch_size, count=steps, seed=0)
    losses, like = [], recipe.abstract_model()

    def dressed(state):
        """The state with a model that knows its caps."""
        return dataclasses.replace(state, model=filled(like, state.model))

    for batch in stream:
        state, metrics = train_step(state, jax.device_put(batch, batched(mesh)))
        losses.append(metrics["loss"])
        if after:
            after(dressed(state))
    return np.array(jax.device_get(losses)), dressed(state)


SMALL = {"width": 16, "batch_size": 64, "steps": 200}


def test_one_step_is_gradient_update_and_projection_in_plain_numpy():
    """A one-layer model without biases: the softmax gradient and the whole step by hand."""
    recipe = make(depth=1, batch_size=64, lr=0.5, beta1=0.9, zero_init=False, constraint="svd-cap", sigma_max=1.2)
    mesh = make_mesh()
    state = init_state(recipe, mesh)
    before = np.asarray(weights(state.model)[0].array).astype(np.float64)
    batch = next(DIGITS.batches(batch_size=64, count=1, seed=0))
    after, metrics = step_of(recipe, mesh)(state, jax.device_put(batch, batched(mesh)))

    x, label = batch["input"] / 16.0, batch["label"]
    logits = x @ before.T
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert float(metrics["loss"]) == pytest.approx(-np.log(probability[np.arange(64), label]).mean(), rel=1e-5)
    gradient = (probability - np.eye(10)[label]).T @ x / 64
    u, sigma, vt = np.linalg.svd(0.1 * gradient, full_matrices=False)
    values = sigma / np.linalg.norm(sigma)
    from lipzoo.theory.msign import SIX_ROW

    for a, b, c in SIX_ROW:
        values = a * values + b * values**3 + c * values**5
    moved = before - 0.5 * np.sqrt(10 / 64) * (u * values) @ vt
    u, sigma, vt = np.linalg.svd(moved, full_matrices=False)
    expected = (u * np.minimum(sigma, 1.2 * np.sqrt(10 / 64))) @ vt
    np.testing.assert_allclose(weights(after.model)[0].array, expected, atol=1e-4)


def test_the_step_compiles_once_and_moves_nothing_to_the_host():
    recipe = make(**SMALL)
    mesh = make_mesh()
    state, train_step = init_state(recipe, mesh), step_of(recipe, mesh)
    stream = DIGITS.batches(batch_size=64, count=6, seed=0)
    on_device = [jax.device_put(batch, batched(mesh)) for batch in stream]
    state, metrics = train_step(state, on_device[0])
    with jax.transfer_guard("disallow"):
        for batch in on_device[1:]:
            donated, (state, metrics) = state, train_step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
    assert make_train_step(resolve(recipe)[0], mesh)._cache_size() == 1
    assert int(state.step) == 6
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("muon", {"mesh": "8"}), ("adamw", {"accum_steps": 4}), ("muon", {"mesh": "4", "accum_steps": 2})],
    ids=str,
)
def test_meshes_and_accumulation_give_the_same_losses(optimizer, options):
    base = {**SMALL, "optimizer": optimizer, "lr": 0.1 if optimizer == "muon" else 0.003}
    # More steps would compare how rounding grows: muon lifts the smallest singular values of its momentum to one.
    expected, one = run(make(**base), 4)
    losses, many = run(make(**base, **options), 4)
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    for a, b in zip(weights(one.model), weights(many.model), strict=True):
        np.testing.assert_allclose(a.array, b.array, atol=2e-3)


def test_half_precision_keeps_float32_masters():
    expected, _ = run(make(**SMALL), 30)
    losses, state = run(make(**SMALL, model_dtype="bfloat16", msign_dtype="bfloat16", project_dtype="bfloat16"), 30)
    np.testing.assert_allclose(losses, expected, rtol=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.model)} == {jnp.dtype(jnp.float32)}
    low = forward(state.model, jnp.asarray(DIGITS.test.input), 16, "bfloat16")
    assert low.dtype == jnp.float32


def test_temperature_multiplies_the_logits_in_the_loss_alone():
    recipe = make(depth=1, zero_init=False, temperature=7.0, batch_size=64)
    mesh = make_mesh()
    state = init_state(recipe, mesh)
    values = make_evaluate(recipe, mesh, DIGITS)(state.model)
    logits = 7 * np.asarray(forward(state.model, jnp.asarray(DIGITS.test.input), 16, "float32"))
    expected = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), jnp.asarray(DIGITS.test.label))
    assert values["val_loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert values["val_accuracy"] == pytest.approx((logits.argmax(1) == DIGITS.test.label).mean())


def test_different_seeds_give_different_runs_and_equal_seeds_equal_ones():
    first, _ = run(make(**SMALL), 5)
    again, _ = run(make(**SMALL), 5)
    other, _ = run(make(**SMALL, seed=1), 5)
    np.testing.assert_array_equal(first, again)
    assert (first[1:] != other[1:]).all()


SOFT_CAP_LIMIT = 7.4 * 2 * 3  # 7.4 caps of 2, at a share of 1/3
GUARANTEES = [
    *[
        ("muon", name, lr)
        for name in CONSTRAINTS
        if CONSTRAINTS[name].guarantees and name != "soft-cap"
        for lr in ((0.3, 90.0) if name in ("hard-cap", "weight-decay") else (90.0,))
    ],
    *[("muon", "soft-cap", lr) for lr in (0.3, 2.0, SOFT_CAP_LIMIT)],
    *[("adamw", name, 0.1) for name in ("soft-cap", "hard-cap", "spectral-normalize")],
]


ROUNDED = [case for case in GUARANTEES if case[1] in ("soft-cap", "stiefel") and case[2] >= 40]
"""The constraints that compute in --project-dtype."""


LAZY = [("soft-cap", 4, "linear"), ("soft-cap", 8, "constant"), ("hard-cap", 3, "cosine"), ("stiefel", 2, "constant")]


@pytest.mark.optimized
@pytest.mark.parametrize(("constraint", "count", "schedule"), LAZY)
def test_caps_hold_after_each_step_though_the_constraint_acts_every_few(constraint, count, schedule):
    settings = {"constraint": constraint, "project_every": count, "schedule": schedule, "warmup_steps": 30}
    recipe = make(**SMALL, **settings, lr=0.3, sigma_max=2.0, nesterov=True)
    norms = []

    def check(state):
        norms.append([svd_norm(weight.array) / weight.cap for weight in weights(state.model)])

    run(recipe, 90, check)
    norms = np.array(norms)
    assert norms.max() <= 1
    step = 0.3 / 3 / 2  # Of a cap.
    assert norms[30:].max() > 1 - 0.02 - step  # The room that was left is used.


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("optimizer", "constraint", "lr", "dtype"),
    [*((*case, "float32") for case in GUARANTEES), *((*case, "bfloat16") for case in ROUNDED)],
)
def test_certified_is_at_most_a_priori_after_each_of_200_real_steps(optimizer, constraint, lr, dtype):
    decay = {"weight-decay": min(0.5, 2 / lr)}.get(constraint, min(0.05, 1 / lr))
    recipe = make(
        **SMALL,
        optimizer=optimizer,
        constraint=constraint,
        lr=lr,
        sigma_max=2.0,
        weight_decay=decay,
        nesterov=optimizer == "muon",
        bias=True,
        schedule="constant",
        model_dtype=dtype,
        msign_dtype=dtype,
        project_dtype=dtype,
    )
    if constraint == "weight-decay" and optimizer == "adamw":
        return
    largest = []

    def check(state):
        ratios = [svd_norm(weight.array) / weight.cap for weight in weights(state.model)]
        assert max(ratios) <= 1
        largest.append(max(ratios))

    _, state = run(recipe, 200, check)
    certificate = Certificate.of(state.model)
    assert certificate.caps_hold
    assert certificate.certified.log_lipschitz <= certificate.a_priori.log_lipschitz
    if constraint != "weight-decay":
        assert max(largest) > 0.9, "the cap is reached, so it was put to the test"


def test_constraints_without_a_guarantee_do_break_their_cap():
    """The flag `guarantees` is not modesty: spectral hammer at a high learning rate ends above the cap."""
    _, state = run(make(**SMALL, constraint="spectral-hammer", sigma_max=1.0, lr=2.0), 20)
    assert not Certificate.of(state.model).caps_hold


def test_layer_norms_are_upper_bounds():
    _, state = run(make(**SMALL), 3)
    norms = layer_norms(state.model)
    for weight in weights(state.model):
        assert svd_norm(weight.array) <= float(norms[weight.name]) <= 1.003 * svd_norm(weight.array)


def test_seal_cuts_exactly_what_exceeds_its_cap():
    _, state = run(make(**SMALL, constraint="spectral-hammer", sigma_max=1.0, lr=0.5, bias=True), 10)
    sealed = seal(state.model)
    assert Certificate.of(sealed).caps_hold
    for before, after in zip(weights(state.model), weights(sealed), strict=True):
        if exact_norm(before) <= before.cap:
            assert after is before
        else:
            assert after.cap * (1 - 1e-5) <= svd_norm(after.array) <= after.cap
        u, sigma, vt = np.linalg.svd(np.asarray(before.array).astype(np.float64), full_matrices=False)
        cut = (u * np.minimum(sigma, before.cap / before.rms_factor)) @ vt
        np.testing.assert_allclose(after.array, cut, atol=1e-5)


def test_more_devices_than_there_are_is_a_users_mistake():
    with pytest.raises(UserError, match="--mesh 512 needs 512 devices"):
        make_mesh("512")


def test_a_model_that_is_free_has_an_infinite_a_priori_bound():
    _, state = run(make(**SMALL, constraint="none"), 2)
    certificate = Certificate.of(state.model)
    assert np.isinf(float(certificate.a_priori.lipschitz))
    assert np.isfinite(certificate.lipschitz)
    doubled = map_weights(lambda w: w.with_array(2 * w.array), state.model)
    assert Certificate.of(doubled).lipschitz == pytest.approx(8 * certificate.lipschitz)
    assert certificate.certified.radius <= Certificate.of(doubled).certified.radius
