"""Constraints that act every few steps: how seldom, what is refused, and runs that go on with another schedule."""

import dataclasses

import jax
import numpy as np
import pytest

from lipzoo.recipe.lazy import every, lowest
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import bare, map_weights, weights
from lipzoo.train.plan import resolve
from lipzoo.train.rested import rested
from tests.conftest import svd_norm
from tests.recipe.test_recipe import make


def counts(recipe):
    found = weights(recipe.complete().abstract_model())
    return {weight.name: every(recipe.constraint, recipe.optimizer, weight) for weight in found}


def test_by_default_it_is_every_step():
    recipe = make(constraint="soft-cap", sigma_max=2.0, lr=1e-6)
    assert set(counts(recipe).values()) == {1}
    for weight in weights(recipe.complete().abstract_model()):
        assert lowest(recipe.constraint, recipe.optimizer, weight, 1e-6) == weight.cap


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"optimizer": "adamw"}, ()),
        ({"constraint": "spectral-hammer"}, ()),
        ({"constraint": "none"}, ()),
        ({"constraint": "weight-decay", "weight_decay": 0.1}, ()),
        ({"constraint_overrides": ("head=spectral-hammer",)}, ("layers.0", "layers.1")),
        ({"bias": True}, ("layers.0", "layers.1", "head")),
    ],
)
def test_only_what_guarantees_a_cap_at_a_known_norm_of_the_step_is_left_out(changes, names):
    recipe = make(**{"constraint": "soft-cap", "sigma_max": 2.0, "lr": 0.1, "project_every": 3, **changes})
    assert {name for name, count in counts(recipe).items() if count == 3} == set(names)
    if not names:
        with pytest.raises(UserError, match="--project-every 3 needs a --constraint that guarantees its cap"):
            recipe.check()


def test_room_for_more_than_half_of_a_cap_is_refused():
    with pytest.raises(UserError, match=r"--project-every 40 would take more than half of the cap of layers\.0"):
        make(constraint="soft-cap", sigma_max=2.0, lr=0.1, project_every=40).check()


def test_weights_that_go_on_with_another_schedule_have_room_for_its_longest_steps():
    recipe = make(constraint="soft-cap", sigma_max=2.0, lr=0.3, project_every=4).complete()
    draw = np.random.default_rng(0)

    def at_its_cap(weight):
        array = draw.normal(size=weight.array.shape)
        return weight.with_array(jax.numpy.asarray(array * weight.cap / svd_norm(array), jax.numpy.float32))

    full = map_weights(at_its_cap, recipe.build_model(jax.random.key(0)))
    result = weights(rested(recipe, bare(full)))
    held = dict(resolve(recipe)[0].held)
    for weight, before in zip(result, weights(full), strict=True):
        step = 0.3 * before.share * held[before.name].update_sup
        norm = svd_norm(weight.array)
        assert before.cap - 3 * step - 2e-3 <= norm <= before.cap - 3 * step
    again = dataclasses.replace(recipe, constraint=dataclasses.replace(recipe.constraint, project_every=1))
    for weight, before in zip(weights(rested(again, bare(full))), weights(full), strict=True):
        np.testing.assert_array_equal(weight.array, before.array)
