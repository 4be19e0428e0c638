"""Vision transformers: bounds against attacks, what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.data.config import Sizes
from lipzoo.evaluate.radii import pair_constants
from lipzoo.layers.pixels import AsTokens, MeanToken, Offset
from lipzoo.models import ViT, ViTConfig
from lipzoo.testing import check_bound
from lipzoo.theory.bound import Bound
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.space import SpaceError, Tokens, Vector
from lipzoo.theory.weight import Weight, exact_norm, weights

SMALL = ViTConfig(depth=1, width=8, heads=2, patch=2, zero_init=False, residual_scale=2.0)
IMAGES = Sizes(2 * 4 * 4, 5, (2, 4, 4))


def net(key=0, cap=1.0, **options):
    return ViT(IMAGES, dataclasses.replace(SMALL, **options), cap=cap, key=jax.random.key(key))


@pytest.mark.parametrize("options", [{"softmax_scale": 3.0}, {"activation": "gelu", "depth": 2}], ids=str)
def test_bounds_stand_attacks(options):
    check_bound(net(**options), seeds=1, steps=15)


LAYERS = {
    "tokens": (AsTokens(), Vector((2, 3, 4))),
    "mean": (MeanToken(6), Tokens(4)),
    "offset": (Offset(Weight(jnp.ones((24, 1)), "b", COLUMN)), Vector((2, 3, 4))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_stand_attacks(name):
    layer, space = LAYERS[name]
    found = check_bound(layer, space, seeds=2, steps=30)
    assert found.gain >= 0.8 * found.lipschitz


def test_one_changed_pixel_counts_in_full():
    """The counterexample to a bound without √T: all of the change in one token."""
    x = jnp.zeros((2, 3, 4)).at[0, 0].set(1.0)
    tokens = AsTokens()(x)
    gain = jnp.sqrt(jnp.mean(tokens**2, axis=-1)).max() / jnp.sqrt(jnp.mean(x**2))
    assert float(gain) == pytest.approx(np.sqrt(6))
    assert float(AsTokens().bound(Bound.start(Vector((2, 3, 4))), exact_norm).lipschitz) == pytest.approx(np.sqrt(6))


def test_every_token_looks_at_all_others():
    x, model = jax.random.normal(jax.random.key(1), (6, 8)), net(depth=1)
    block = model.body.layers[5].block(0)
    jacobian = np.abs(jax.jacobian(block)(x)).max((1, 3))
    assert (jacobian > 1e-6).all()


def test_no_difference_of_logits_moves_by_more_than_its_constant():
    model = net()
    pairs = pair_constants(model)
    for seed in range(10):
        jacobian = np.asarray(jax.jacobian(model)(jax.random.normal(jax.random.key(seed), (IMAGES.inputs,))))
        differences = np.linalg.norm(jacobian[:, None] - jacobian[None], axis=-1)
        assert (differences <= pairs * (1 + 1e-5)).all()
    rows = np.asarray(weights(model)[-1].array)
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.testing.assert_allclose(pairs / (apart + np.eye(5)), pairs[0, 1] / apart[0, 1] * (1 - np.eye(5)), rtol=1e-4)


def test_certificate_has_all_weights_and_the_deviation_of_what_runs():
    from lipzoo.theory.functions import arithmetic

    certificate = Certificate.of(net(), arithmetic=arithmetic("float32"))
    assert {"stem", "places", "blocks.0.q", "head"} <= {row.name for row in certificate.rows}
    assert 0 < certificate.running.deviation < 1e-2
    assert SMALL.parameters(IMAGES) == sum(w.array.size for w in weights(net()) if w.name != "places")


@pytest.mark.parametrize(("options", "flag"), [({"heads": 3}, "--heads"), ({"patch": 3}, "--patch")])
def test_impossible_nets_are_refused(options, flag):
    with pytest.raises(ValueError, match=flag):
        net(**options)


def test_no_other_number_of_tokens_is_averaged():
    with pytest.raises(ValueError, match="6 tokens was given 5"):
        MeanToken(6)(jnp.ones((5, 4)))
    with pytest.raises(SpaceError):
        AsTokens().bound(Bound.start(Vector((4,))), exact_norm)
