"""Convolutional networks, and potential residuals in other families: bounds, caps in training, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.constraints.seal import seal
from lipzoo.data.config import Sizes
from lipzoo.devices.mesh import make_mesh
from lipzoo.layers.base import silent
from lipzoo.models import GPT, MLP, ConvNet, ConvNetConfig, GPTConfig, MLPConfig
from lipzoo.recipe.largest_step import largest_step
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.unused import unused_refusal
from lipzoo.system.errors import UserError
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Tokens
from lipzoo.theory.weight import cap_norm, exact_norm, set_caps, weights
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from recipes import digits_convnet

SIZES = Sizes(64, 10, (1, 8, 8))
TINY = ConvNetConfig(depth=2, stages=2, width=4, zero_init=False)
CONFIGS = {
    "potential": TINY,
    "tanh": dataclasses.replace(TINY, activation="tanh", border="circular", patch=1, potential_cap=1.5),
    "convex": dataclasses.replace(TINY, residual="convex", activation="maxmin", down="average", bias=False),
    "plain": dataclasses.replace(TINY, residual="none", activation="abs", kernel=1, stages=3, head="rows"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_with_caps_of_one_a_network_is_as_lipschitz_as_is_said(name):
    config = CONFIGS[name]
    net = ConvNet(SIZES, config, cap=1.0, key=jax.random.key(0))
    assert all(exact_norm(w).max() <= 1 for w in weights(net))
    bound = net.bound(Bound.start(net.takes), cap_norm)
    assert bound.lipschitz == pytest.approx(1, rel=1e-9)
    assert silent(net) == []
    x = jax.random.normal(jax.random.key(1), (3, 64))
    assert jax.jit(jax.vmap(net))(x).shape == (3, 10)
    jacobians = np.asarray(jax.jit(jax.vmap(jax.jacobian(net)))(x), np.float64)
    largest = np.linalg.svd(jacobians, compute_uv=False).max() * np.sqrt(64 / 10)
    exact = net.bound(Bound.start(net.takes), exact_norm)
    assert largest <= exact.lipschitz * (1 + 1e-5)
    assert largest > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "maxmin"}, "--residual potential needs --activation relu or tanh"),
        ({"patch": 3}, "--patch 3 and --stages 2 need images that 6 pixels divide"),
        ({"kernel": 7}, "a kernel of 7 does not fit an image of 2×2 after --patch 2"),
        ({"depth": 0}, "--depth"),
        ({"residual": "none", "activation": "maxmin", "width": 3}, "even --width"),
    ],
)
def test_impossible_networks_are_refused(changes, message):
    config = dataclasses.replace(TINY, **changes)
    with pytest.raises(ValueError, match=message):
        ConvNet(SIZES, config, key=jax.random.key(0))
    with pytest.raises(UserError, match=message):
        dataclasses.replace(digits_convnet.RECIPE, model=config).check()


def test_a_recipe_is_read_again_and_useless_flags_are_told():
    recipe = digits_convnet.RECIPE
    recipe.check()
    assert Recipe.from_json(recipe.to_json()) == recipe
    for changes, flag in (
        ({"alpha": 0.3}, "--alpha has no effect without --residual convex"),
        ({"residual": "convex", "potential_cap": 2.0}, "--potential-cap has no effect without --residual potential"),
    ):
        given = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **changes))
        assert flag in str(unused_refusal(recipe, given))


def test_parameters_are_no_more_than_there_are():
    net = ConvNet(SIZES, TINY, key=jax.random.key(0))
    assert 0.7 < TINY.parameters(SIZES) / sum(w.array.size for w in weights(net)) <= 1


HIGH = [pytest.param("muon", "soft-cap", 20.0, marks=pytest.mark.optimized), ("adamw", "hard-cap", 0.3)]


@pytest.mark.parametrize(("optimizer", "constraint", "lr"), HIGH)
def test_caps_hold_after_each_step_at_high_learning_rates(optimizer, constraint, lr):
    recipe = digits_convnet.RECIPE
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(TINY, stages=1, bias=False, zero_init=True),
        optimizer=dataclasses.replace(recipe.optimizer, optimizer=optimizer, lr=lr, schedule="constant"),
        constraint=dataclasses.replace(recipe.constraint, constraint=constraint),
    )
    recipe.check()
    mesh = make_mesh()
    step, state = step_of(recipe, mesh), init_state(recipe, mesh)
    rng = np.random.default_rng(0)
    for _ in range(8):
        x = jnp.asarray(rng.integers(0, 17, size=(32, 64)), jnp.uint8)
        state, metrics = step(state, {"input": x, "label": jnp.asarray(rng.integers(0, 10, 32), jnp.int32)})
        assert np.isfinite(metrics["loss"])
        model = recipe.dressed(state.model)
        assert max(float(np.max(exact_norm(w) / w.cap)) for w in weights(model)) <= 1
    kernels = [w for w in weights(model) if w.name.startswith("blocks.") and "bias" not in w.name]
    assert min(float(exact_norm(w).max()) for w in kernels) > 0.97  # The caps are reached.
    certificate = Certificate.of(seal(model))
    assert certificate.caps_hold


def test_what_a_step_can_do_is_proved():
    proved = largest_step(digits_convnet.RECIPE)
    assert np.isfinite(proved.rms)
    assert largest_step(digits_convnet.RECIPE, 1e-3).rms < 0.3 * proved.rms


def test_an_mlp_of_potentials():
    mlp = MLP(8, 16, 4, depth=4, potential=1.5, bias=True, zero_init=False, key=jax.random.key(0))
    mlp = set_caps(mlp, {w.name: 1.5 if w.name in ("layers.1", "layers.2") else 1.0 for w in weights(mlp)})
    assert mlp.bound(Bound.start(mlp.takes), cap_norm).lipschitz == pytest.approx(1, rel=1e-9)
    shares = {w.name: w.share for w in weights(mlp)}
    assert shares["layers.1"] == pytest.approx(shares["head"] * 1.5 / 4)
    for options, flag in (({"activation": "gelu"}, "--potential needs"), ({"residual": 0.5}, "leave out --residual")):
        with pytest.raises(ValueError, match=flag):
            MLP(8, 16, 4, potential=1.0, key=jax.random.key(0), **options)
    stored = dataclasses.asdict(MLPConfig())
    del stored["potential"]
    assert MLPConfig(**stored) == MLPConfig()


def test_a_gpt_of_potentials():
    config = GPTConfig(width=8, heads=2, depth=2, zero_init=False, residual="potential", activation="relu")
    gpt = GPT(5, config, cap=1.0, key=jax.random.key(0))
    assert {w.name.removeprefix("blocks.") for w in weights(gpt)} == {"embedding", "q", "k", "v", "out", "up", "head"}
    assert gpt(jnp.arange(4)).shape == (4, 5)
    convex = GPT(5, dataclasses.replace(config, residual="convex", activation="maxmin"), cap=1.0, key=jax.random.key(0))
    by_caps = [float(g.bound(Bound.start(g.takes), cap_norm).lipschitz) for g in (gpt, convex)]
    assert by_caps[0] == pytest.approx(by_caps[1], rel=1e-6)
    block = gpt.stack.block(0).layers[1]
    assert block.bound(Bound.start(Tokens(8)), cap_norm).lipschitz == pytest.approx(1, rel=1e-9)
    for changes in ({"activation": "gelu"}, {"norm": "rms"}):
        assert "--residual potential needs" in str(dataclasses.replace(config, **changes).conflict())
    assert "--potential-cap" in str(GPTConfig(architecture="lipsformer", potential_cap=2.0).conflict())
