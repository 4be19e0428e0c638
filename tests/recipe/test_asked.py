"""A Lipschitz constant that is asked for: kept before and after training, with caps in their ratios, or refused."""

import dataclasses
import math

import jax
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.data import TextConfig
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import make_mesh
from lipzoo.models import GPTConfig
from lipzoo.recipe.asked import with_lipschitz
from lipzoo.recipe.largest_step import fitted
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import weights
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from tests.recipe.test_recipe import make


def text(config):
    return Recipe("text", config, TextConfig("pydoc", seq_len=32, batch_size=4).complete())


def asked(recipe, lipschitz):
    return dataclasses.replace(recipe, constraint=dataclasses.replace(recipe.constraint, lipschitz=lipschitz))


RECIPES = {
    "mlp": lambda: make(width=16, batch_size=32, depth=3),
    "residual": lambda: make(width=16, depth=5, residual=0.5, bias=True, constraint="hard-cap"),
    "ratios": lambda: make(width=16, sigma_max_overrides=("head=9", "layers.*=2")),
    "gpt": lambda: text(GPTConfig(depth=2, width=16, heads=2)),
    "gpt, whole matrices": lambda: text(GPTConfig(depth=2, width=16, heads=2, granularity="matrix", softmax_scale=1.0)),
}


@pytest.mark.parametrize("lipschitz", [0.7, 5.0, 1e4])
@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_as_lipschitz_as_asked_before_training(name, lipschitz):
    before = asked(RECIPES[name](), lipschitz)
    recipe = with_lipschitz(before)
    model = recipe.build_model(jax.random.key(0))
    certificate = Certificate.of(model, window=8)
    assert certificate.caps_hold
    assert lipschitz * 0.999 <= float(certificate.a_priori.lipschitz) <= lipschitz * (1 + 1e-9)
    assert with_lipschitz(recipe) == recipe  # As when the run is resumed.
    old, new = ({w.name: w.cap for w in weights(r.abstract_model())} for r in (before, recipe))
    factors = [new[n] / old[n] for n in old if n != "embedding" and math.isfinite(old[n])]
    assert max(factors) == pytest.approx(min(factors), rel=1e-4)
    assert new.get("embedding") == old.get("embedding")


def test_it_is_kept_after_each_step():
    recipe = fitted(asked(make(width=16, batch_size=32, steps=10, lr=1.0), 2.0))
    mesh = make_mesh()
    state, step = init_state(recipe, mesh), step_of(recipe, mesh)
    for batch in load_digits().batches(batch_size=32, count=10, seed=0):
        state, _ = step(state, batch)
        assert Certificate.of(recipe.dressed(state.model)).lipschitz <= 2.0


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (lambda: make(constraint="none"), "needs a cap on layers.0"),
        (lambda: make(constraint="spectral-hammer"), "needs a cap on layers.0"),
        (lambda: make(constraint="weight-decay", weight_decay=0.1), "needs a cap on layers.0"),
        (lambda: make(constraint_overrides=("head=none",)), "needs a cap on head"),
        (lambda: text(GPTConfig(depth=8, width=16, heads=2, norm="rms", residual="plain")), "can still be"),
    ],
)
def test_what_caps_cannot_do_is_refused(recipe, words):
    with pytest.raises(UserError, match=words):
        with_lipschitz(asked(recipe(), 1e-9))


def test_caps_that_are_too_small_for_the_learning_rate_are_refused():
    with pytest.raises(UserError, match="ask for a larger --lipschitz"):
        fitted(asked(make(lr=2.0), 1e-6))
    assert isinstance(fitted(asked(make(lr=20.0, sigma_max=1.0), 1e4)), Recipe)
