"""The MLP: shapes, initialization, shares, what it prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.config.fields import field_refusal
from lipzoo.models import MLP, MLPConfig
from lipzoo.models.mlp import ACTIVATIONS
from lipzoo.theory.weight import weights
from tests.conftest import svd_norm


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("bias", "residual"), [(False, 0.0), (True, 0.5)])
def test_any_depth_activation_and_option_runs(depth, activation, bias, residual):
    mlp = MLP(12, 16, 3, depth=depth, activation=activation, bias=bias, residual=residual, key=jax.random.key(0))
    logits = jax.vmap(mlp)(jnp.ones((5, 2, 2, 3)))
    assert logits.shape == (5, 3)
    assert (logits == 0).all()  # The head starts at zero.
    assert len(weights(mlp)) == depth * (2 if bias else 1)


def test_initial_weights_are_semi_orthogonal_with_unit_norm_or_the_cap(getkey):
    for cap, expected in ((3.0, 1.0), (0.4, 0.4)):
        for weight in weights(MLP(48, 32, 10, cap=cap, zero_init=False, key=getkey())):
            sigma = np.linalg.svd(np.asarray(weight.array), compute_uv=False) * weight.rms_factor
            np.testing.assert_allclose(sigma, expected, rtol=1e-4)
            assert svd_norm(weight.array) <= cap


def test_shares_are_masses_over_what_is_downstream():
    mlp = MLP(8, 8, 2, depth=4, residual=0.25, final_scale=2.0, key=jax.random.key(0))
    assert [w.share for w in weights(mlp)] == pytest.approx([1 / 8, 1 / 2, 1 / 2, 1 / 8])
    assert [w.share for w in weights(MLP(8, 8, 2, key=jax.random.key(0)))] == pytest.approx([1 / 3] * 3)


def test_repr_shows_shapes_caps_and_bound(getkey):
    text = repr(MLP(48, 32, 10, cap=2.0, key=getkey()))
    assert "layers.0" in text
    assert "32×48" in text
    assert "cap 2" in text
    assert text.endswith("bound (RMS → RMS): 8.0001")
    assert repr(MLP(48, 32, 10, key=getkey())).endswith("∞")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"depth": 0}, "--depth"),
        ({"width": 0}, "--width"),
        ({"residual": 1.5}, "--residual"),
        ({"final_scale": 0.0}, "--final-scale"),
        ({"final_scale": float("inf")}, "--final-scale"),
        ({"activation": "maxmin", "width": 7}, "--width"),
    ],
)
def test_impossible_models_are_refused(options, flag):
    config = MLPConfig(**options)
    assert flag in (field_refusal(config) or config.conflict())
    assert field_refusal(MLPConfig()) is None
    assert MLPConfig().conflict() is None
