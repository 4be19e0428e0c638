"""The loss that asks for certified accuracy: its numbers follow from the caps alone, and the margin is what it says."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import make_mesh
from lipzoo.recipe.certify_at import MARGIN, SHARPNESS, with_certify_at
from lipzoo.recipe.largest_step import fitted
from lipzoo.system.errors import UserError
from lipzoo.train.plan import resolve
from lipzoo.train.state import init_state
from lipzoo.train.step import make_train_step
from recipes.shakespeare_gpt import RECIPE as SHAKESPEARE
from tests.recipe.test_recipe import make


@pytest.mark.parametrize(("cap", "epsilon"), [(1.0, "36/255"), (1.7, "36/255"), (3.0, "0.5"), (0.3, "1")])
def test_units_are_what_caps_let_differences_of_logits_move(cap, epsilon):
    """Beside the a-priori bound of a certificate: √2 times the ℓ₂ constant times ε."""
    recipe = fitted(make(sigma_max=cap, width=16, certify_at=epsilon))
    certificate = Certificate.of(recipe.build_model(jax.random.key(0)))
    assert certificate.l2_factor is not None
    l2 = math.exp(float(certificate.a_priori.log_lipschitz)) * certificate.l2_factor
    change = math.sqrt(2) * l2 * eval_fraction(epsilon)
    assert recipe.training.margin == pytest.approx(MARGIN * change, rel=1e-4)
    assert recipe.training.temperature == pytest.approx(SHARPNESS / change, rel=1e-4)
    assert fitted(recipe) == recipe


def eval_fraction(text):
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"certify_at": "x"}, "36/255, got 'x'"),
        ({"certify_at": "0"}, "36/255, got '0'"),
        ({"certify_at": "1/0"}, "36/255"),
        ({"certify_at": "inf"}, "36/255"),
        ({"certify_at": "0.1", "constraint": "none"}, "needs caps"),
        ({"certify_at": "0.1", "depth": 150, "width": 8, "sigma_max": 1e5, "lr": 1e-6}, "nearer to 1"),
        ({"certify_at": "0.1", "depth": 150, "width": 8, "sigma_max": 1e-5, "lr": 1e-6}, "nearer to 1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        fitted(make(**options))


def test_it_is_for_images():
    training = dataclasses.replace(SHAKESPEARE.training, certify_at="0.1")
    with pytest.raises(UserError, match="classifiers of images"):
        with_certify_at(dataclasses.replace(SHAKESPEARE, training=training))


def test_the_margin_comes_off_the_logit_of_the_right_class():
    recipe = make(width=8, batch_size=32, margin=0.7, temperature=3.0, zero_init=False)
    mesh, (plan, hyper) = make_mesh(), resolve(recipe)
    state = init_state(recipe, mesh)
    batch = next(load_digits().batches(batch_size=32, count=1, seed=0))
    model = recipe.dressed(state.model)
    z = np.asarray(jax.vmap(model)(jnp.asarray(batch["input"], jnp.float32) / 16), np.float64)
    z[np.arange(32), batch["label"]] -= 0.7
    z *= 3.0
    wanted = (np.log(np.exp(z).sum(1)) - z[np.arange(32), batch["label"]]).mean()
    _, metrics = make_train_step(plan, mesh)(state, batch, hyper)
    assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-5)
