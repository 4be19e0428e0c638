"""Optimizers: the norm of Muon's step, decay, shares, schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipzoo.config.fields import field_refusal
from lipzoo.models import MLP
from lipzoo.optim import OptimizerConfig
from lipzoo.optim.schedules import schedule
from lipzoo.theory import msign
from lipzoo.theory.weight import map_weights, weights
from tests.conftest import svd_norm


def gradients_like(model, key, scale=1.0):
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def known(config, model):
    """What an update is told beside its gradient."""
    return {"hyper": config.hyper({w.name: w.share for w in weights(model)}), "clock": jnp.int32(0)}


@pytest.mark.parametrize("polynomial", sorted(msign.POLYNOMIALS))
@pytest.mark.parametrize(("dtype", "nesterov"), [("float32", True), ("bfloat16", False)])
def test_muon_updates_have_at_most_the_stated_norm(polynomial, nesterov, dtype, getkey):
    config = OptimizerConfig(polynomial=polynomial, nesterov=nesterov, msign_dtype=dtype)
    if config.conflict(steps=100):
        pytest.skip("refused: polar-express diverges in bfloat16")
    model = MLP(48, 32, 10, bias=True, zero_init=False, key=getkey())
    transform = config.build()
    state = transform.init(model)
    update = jax.jit(functools.partial(transform.update, **known(config, model)))
    for _ in range(5):
        updates, state = update(gradients_like(model, getkey()), state, model)
        for weight in weights(updates):
            norm = svd_norm(weight.array)
            assert norm <= config.update_sup(weight) * weight.share
            assert norm >= 0.5 * weight.share


def test_muon_solves_the_dual_problem_of_the_rms_norm(getkey):
    """⟨G, U⟩ over ‖U‖ ≤ 1 is maximal at √(out/in)·UVᵀ, where it is the nuclear norm times √(out/in)."""
    model = MLP(48, 32, 10, key=getkey())
    config = OptimizerConfig(polynomial="polar-express", beta1=0.0)
    gradient, transform = gradients_like(model, getkey()), config.build()
    updates, _ = transform.update(gradient, transform.init(model), model, **known(config, model))
    for g, u in zip(weights(gradient), weights(updates), strict=True):
        nuclear = np.linalg.svd(np.asarray(g.array), compute_uv=False).sum() / g.rms_factor
        assert float((g.array * u.array).sum()) / u.share == pytest.approx(nuclear, rel=0.1)


def test_momentum_is_an_average_without_bias_correction(getkey):
    model = MLP(12, 8, 4, key=getkey())
    gradient = gradients_like(model, getkey())
    config = OptimizerConfig(optimizer="adamw", beta1=0.9, beta2=0.95)
    transform = config.build()
    updates, _ = transform.update(gradient, transform.init(model), model, **known(config, model))
    for g, u in zip(weights(gradient), weights(updates), strict=True):
        expected = 0.1 * g.array / jnp.sqrt(0.05 * g.array**2)
        np.testing.assert_allclose(u.array, expected, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_decay_is_scaled_by_share(optimizer, getkey):
    model = MLP(12, 8, 4, final_scale=2.0, zero_init=False, key=getkey())
    gradient = map_weights(lambda w: w.with_array(jnp.zeros_like(w.array)), model)
    config = OptimizerConfig(optimizer=optimizer, weight_decay=0.3)
    transform = config.build()
    updates, _ = transform.update(gradient, transform.init(model), model, **known(config, model))
    for w, u in zip(weights(model), weights(updates), strict=True):
        np.testing.assert_allclose(u.array, 0.3 * w.share * w.array, rtol=1e-6)
        assert w.share == pytest.approx(1 / 6)


def test_muon_agrees_with_optax_where_both_are_defined(getkey):
    """optax's Muon on transposed square matrices, the classic polynomial, no Nesterov, no bias correction left."""
    model = MLP(16, 16, 16, depth=2, zero_init=False, key=getkey())
    gradient = gradients_like(model, getkey())
    config = OptimizerConfig(polynomial="classic", beta1=0.9)
    ours = config.build()
    theirs = optax.contrib.scale_by_muon(beta=0.9, nesterov=False)
    updates, _ = ours.update(gradient, ours.init(model), model, **known(config, model))
    for g, u in zip(weights(gradient), weights(updates), strict=True):
        with jax.numpy_dtype_promotion("standard"):
            expected, _ = theirs.update(g.array.T, theirs.init(g.array.T))
        np.testing.assert_allclose(u.array / u.share, expected.T, atol=2e-4)


SCHEDULES = [
    ("linear", lambda s: 1 - s / 100),
    ("cosine", lambda s: 0.5 * (1 + np.cos(np.pi * s / 100))),
    ("constant", lambda s: 1.0),
    ("sqrt", lambda s: 1 / (1 + np.sqrt(s // 512))),
    ("trapezoid", lambda s: 1.0 if s <= 60 else 1 - 0.9 * (s - 60) / 40),
    ("triangular", lambda s: (s + 1) / 41 if s <= 40 else (100 - s) / 60),
]


@pytest.mark.parametrize(("name", "formula"), SCHEDULES)
def test_schedules_follow_their_formulas(name, formula):
    factor = schedule(name, 100)
    for step in (0, 1, 39, 40, 41, 59, 60, 61, 99):
        assert float(factor(jnp.int32(step))) == pytest.approx(formula(step), abs=1e-6)


PARTS = [
    ({"schedule": "trapezoid", "cooldown": 0.1, "cooldown_floor": 0.0}, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ({"schedule": "trapezoid", "cooldown": 0.5, "cooldown_floor": 0.0}, [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
    ({"schedule": "trapezoid", "cooldown": 0.5, "cooldown_floor": 0.5}, [1, 1, 1, 1, 1, 1, 0.9, 0.8, 0.7, 0.6]),
    ({"schedule": "trapezoid", "cooldown": 1.0, "cooldown_floor": 1.0}, [1] * 10),
    ({"schedule": "trapezoid", "cooldown": 0.5, "warmup_steps": 2}, [1 / 3, 2 / 3, *[1] * 5, 0.775, 0.55, 0.325]),
    ({"schedule": "triangular", "peak_at": 0.5}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 0.8, 0.6, 0.4, 0.2]),
    (
        {"schedule": "triangular", "peak_at": 0.5, "warmup_steps": 3},
        [*[k / 6 for k in range(1, 7)], 0.8, 0.6, 0.4, 0.2],
    ),
    ({"schedule": "triangular", "peak_at": 0.0}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ({"schedule": "triangular", "peak_at": 1.0}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
]


@pytest.mark.parametrize(("options", "values"), PARTS, ids=[str(list(o.values())) for o, _ in PARTS])
def test_where_schedules_rise_and_fall_is_asked_for(options, values):
    factor = OptimizerConfig(**options).factor(10)
    assert [float(factor(jnp.int32(s))) for s in range(10)] == pytest.approx(values, abs=1e-6)


def test_one_step_is_at_the_peak_of_a_triangle():
    assert float(schedule("triangular", 1)(jnp.int32(0))) == 1


def test_a_triangle_needs_no_room_for_a_warm_up_that_it_does_not_have():
    assert "--warmup-steps" in OptimizerConfig(warmup_steps=200).conflict(100)
    assert OptimizerConfig(schedule="triangular", warmup_steps=200).conflict(100) is None


@pytest.mark.parametrize("name", [row[0] for row in SCHEDULES])
@pytest.mark.parametrize("warmup", [0, 10])
def test_no_factor_exceeds_one_and_warm_up_rises(name, warmup):
    values = np.array([float(schedule(name, 2000, warmup)(jnp.int32(s))) for s in range(0, 2000, 3)])
    assert (values <= 1).all()
    assert (values >= 0).all()
    assert (np.diff(values[: warmup // 3]) > 0).all()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"lr": float("inf")}, "--lr"),
        ({"lr": -1.0}, "--lr"),
        ({"beta1": 1.0}, "--beta1"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"weight_decay": float("inf")}, "--weight-decay"),
        ({"warmup_steps": 100}, "--warmup-steps"),
        ({"cooldown": 0.0}, "--cooldown"),
        ({"cooldown_floor": 1.1}, "--cooldown-floor"),
        ({"peak_at": -0.1}, "--peak-at"),
        ({"optimizer": "adamw", "nesterov": True}, "--nesterov"),
    ],
)
def test_impossible_optimizers_are_refused(options, flag):
    config = OptimizerConfig(**options)
    assert flag in (field_refusal(config) or config.conflict(steps=100))
    assert OptimizerConfig().conflict(steps=100) is None
