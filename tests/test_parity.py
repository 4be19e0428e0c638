"""Ten steps of the published code (Newhouse et al. 2025), number by number.

`fixtures/mlp_parity.npz` holds what that code computed for an MLP 48-32-32-10: first weights, batches, losses, final
weights.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipzoo.constraints.soft_cap import LARGEST_SHRINK, soft_cap_round, solve
from lipzoo.devices.mesh import make_mesh
from lipzoo.models import MLP
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig
from lipzoo.theory.msign import SIX_ROW, approximate
from lipzoo.theory.weight import bare, filled, map_weights, set_caps, weights
from lipzoo.train.plan import resolve
from lipzoo.train.step import Computation

pytestmark = pytest.mark.optimized

PUBLISHED = np.load(Path(__file__).parent / "fixtures" / "mlp_parity.npz")
OPTIMIZERS = {"adam": "adamw", "muon": "muon"}
CONSTRAINTS = {
    "none": "none",
    "spec_hammer": "spectral-hammer",
    "spec_normalize": "spectral-normalize",
    "spec_wd": "spectral-weight-decay",
    "hard_cap": "hard-cap-poly",
    "orthogonal": "stiefel",
    "soft_cap": "soft-cap",
}


def recipe_of(case):
    optimizer, _, constraint = case.partition("_")
    lr, cap, decay, spectral_decay = PUBLISHED[f"{case}.settings"].tolist()
    return Recipe(
        optimizer=OptimizerConfig(optimizer=OPTIMIZERS[optimizer], lr=lr, weight_decay=decay),
        constraint=ConstraintConfig(CONSTRAINTS[constraint], sigma_max=cap, spectral_wd=spectral_decay),
        training=TrainingConfig(steps=10),
    )


def first_model(recipe):
    model = MLP(48, 32, 10, key=jax.random.key(0))
    model = set_caps(model, {weight.name: recipe.cap_of(weight) for weight in weights(model)})
    arrays = iter([jnp.asarray(PUBLISHED[f"init_{i}"]) for i in range(3)])
    return map_weights(lambda weight: weight.with_array(next(arrays)), model)


def published_soft_cap(case, model, lr):
    """The published coupling of the soft cap: the update's norm divided by √(out/in), though it is 1 in RMS units."""
    norms = iter(PUBLISHED[f"{case}.update_norms"].tolist())
    return map_weights(lambda w: exact_soft_cap(w, w.cap + float(lr) * next(norms) * w.rms_factor), model)


def exact_soft_cap(weight, norm):
    """The rounds of the soft cap without what it takes off for rounding, so that the cap may be missed by some ulps."""
    matrix = weight.array * weight.rms_factor
    while norm > weight.cap * (1 + 1e-7):
        shrink = min(1 - weight.cap / norm, LARGEST_SHRINK)
        matrix = soft_cap_round(matrix, solve(jnp.float32(shrink)) / norm**2, "float32")
        norm *= 1 - shrink
    return weight.with_array(matrix / weight.rms_factor)


def exact_stiefel(model):
    """The polynomial itself, without the division that keeps it under the cap whatever rounding does."""
    return map_weights(
        lambda w: w.with_array(w.cap * approximate(w.array * w.rms_factor, SIX_ROW) / w.rms_factor), model
    )


def loss_of(model, inputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(inputs), targets).mean()


@functools.cache
def compiled(plan):
    """Gradients and updates: most of the time of a case is their compilation, which those of equal plans share."""
    optimizer = plan.transform()
    return jax.jit(jax.value_and_grad(loss_of)), optimizer.init, jax.jit(optimizer.update)


def ten_steps(case):
    recipe = recipe_of(case)
    like = first_model(recipe)
    model = bare(like)
    plan, hyper = resolve(recipe)
    hyper = jax.tree.map(jnp.asarray, hyper)
    computation = Computation(plan, make_mesh())
    differentiate, init, update = compiled(dataclasses.replace(plan, held=()))  # Constraints are applied here.
    state, losses = init(model), []
    for step, (inputs, targets) in enumerate(zip(PUBLISHED["inputs"], PUBLISHED["targets"], strict=True)):
        loss, gradient = differentiate(model, jnp.asarray(inputs), jnp.asarray(targets.astype(np.int32)))
        losses.append(float(loss))
        updates, state = update(gradient, state, model, hyper=hyper, clock=jnp.int32(step))
        lr = recipe.optimizer.lr * plan.factor(jnp.int32(step))
        updates = jax.tree.map(lambda u, lr=lr: -lr * u, updates)
        model = optax.apply_updates(model, updates)
        if case == "muon_soft_cap":
            model = bare(published_soft_cap(case, filled(like, model), lr))
        elif case == "muon_orthogonal":
            model = bare(exact_stiefel(filled(like, model)))
        else:
            model = computation.constrain(model, updates, jnp.int32(step), hyper, jax.random.key(step))
    return np.array(losses), filled(like, model)


def test_logits_of_the_first_weights():
    logits = jax.vmap(first_model(recipe_of("adam_none")))(jnp.asarray(PUBLISHED["inputs"][0]))
    np.testing.assert_allclose(logits, PUBLISHED["logits"], atol=1e-6)


EXACT = [
    "adam_none",
    "adam_spec_normalize",
    "muon_none",
    "muon_hard_cap",
    "muon_orthogonal",
    "muon_soft_cap",
    "muon_spec_normalize",
]


@pytest.mark.parametrize("case", EXACT)
def test_ten_steps_end_at_the_published_weights(case):
    losses, model = ten_steps(case)
    np.testing.assert_allclose(losses, PUBLISHED[f"{case}.losses"], atol=2e-5)
    for index, weight in enumerate(weights(model)):
        np.testing.assert_allclose(weight.array, PUBLISHED[f"{case}.final_{index}"], atol=2e-5)


def spectra(arrays):
    return [np.linalg.svd(np.asarray(a), compute_uv=False) * np.sqrt(a.shape[1] / a.shape[0]) for a in arrays]


@pytest.mark.parametrize(
    ("case", "loss_tolerance", "spectrum_tolerance"),
    [
        ("muon_spec_wd", 5e-3, 0.05),
        ("muon_spec_hammer", 0.03, 0.1),
        ("adam_spec_hammer", 0.15, 0.02),
    ],
)
def test_maps_of_the_top_value_agree_in_what_their_random_start_leaves_determined(
    case, loss_tolerance, spectrum_tolerance
):
    """The first weights are semi-orthogonal: all singular values are equal, so the published power iteration (few
    steps, random start) picks an arbitrary direction in each. Losses and spectra are comparable, entries are not."""
    losses, model = ten_steps(case)
    np.testing.assert_allclose(losses, PUBLISHED[f"{case}.losses"], atol=loss_tolerance)
    ours = spectra([weight.array for weight in weights(model)])
    published = spectra([PUBLISHED[f"{case}.final_{i}"] for i in range(3)])
    for a, b in zip(ours, published, strict=True):
        np.testing.assert_allclose(a, b, atol=spectrum_tolerance)
        if "hammer" in case:
            assert a[0] == pytest.approx(2.0, abs=1e-3)
            assert b[0] == pytest.approx(2.0, abs=1e-3)
