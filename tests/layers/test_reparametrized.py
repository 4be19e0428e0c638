"""Layers that are 1-Lipschitz by construction: their matrices against NumPy, their bounds against automatic
differentiation in float64 and attacks, whatever the raw numbers are."""

import dataclasses
import decimal
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.tighten import tightest
from lipzoo.constraints.seal import seal
from lipzoo.devices.mesh import batched, make_mesh
from lipzoo.layers.activation import GELU, ReLU, Tanh
from lipzoo.layers.compose import Sequential
from lipzoo.layers.linear import Linear
from lipzoo.layers.reparametrized import ACTIVE, REPARAMETRIZED
from lipzoo.layers.reparametrized.aol import AOL
from lipzoo.layers.reparametrized.base import Potential, UnitLinear, matrix
from lipzoo.layers.reparametrized.bjorck import BJORCK
from lipzoo.layers.reparametrized.cayley import CAYLEY
from lipzoo.layers.reparametrized.cpl import CPL
from lipzoo.layers.sorting import GroupSort
from lipzoo.models import MLP, MLPConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.testing import check_bound
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.geometry import BELOW
from lipzoo.theory.space import SpaceError, Tokens, Vector
from lipzoo.theory.weight import Weight, cap_norm, exact_norm, filled, gram_norm, set_caps, weights
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from tests.conftest import svd_norm
from tests.recipe.test_recipe import make
from tests.train.test_train import DIGITS

SHAPES = {"wide": (4, 9), "tall": (9, 4), "square": (6, 6), "row": (1, 5), "column": (5, 1)}


def ill(draw):
    u, _, vt = np.linalg.svd(draw, full_matrices=False)
    return (u * np.logspace(0, -8, len(vt))) @ vt


RAW = {
    "gaussian": lambda draw: draw,
    "large": lambda draw: 1e4 * draw,
    "huge": lambda draw: 1e30 * draw,
    "tiny": lambda draw: 1e-30 * draw,
    "zero": np.zeros_like,
    "rank one": lambda draw: np.outer(draw[:, 0], draw[0]),
    "constant": np.ones_like,
    "badly conditioned": ill,
    "one small row": lambda draw: np.where(np.arange(len(draw))[:, None] == 0, 1e-12, 1) * draw,
    "one large column": lambda draw: np.where(np.arange(draw.shape[1]) == 0, 1e6, 1) * draw,
    "no row": lambda draw: np.where(np.arange(len(draw))[:, None] == 0, 0, 1) * draw,
}
ROUNDING = 1 + 1e-12
"""Of automatic differentiation in float64."""
STEEP = {"large", "huge", "one large column"}
"""Where I is lost beside A in a Cayley transform, so that a certificate may be above 1."""


def module(kind, out_size, in_size, change=RAW["gaussian"], seed=0, bias=True):
    """A module whose raw numbers are changed, and whose bias is not zero."""
    keys = jax.random.split(jax.random.key(seed), 3)
    fresh = REPARAMETRIZED[kind](out_size, in_size, name="w", share=1.0, key=keys[0], bias=bias)
    draw = np.asarray(jax.random.normal(keys[1], fresh.weight.array.shape), np.float64)
    fresh = dataclasses.replace(fresh, weight=fresh.weight.with_array(jnp.asarray(change(draw), jnp.float32)))
    if not bias:
        return fresh
    return dataclasses.replace(
        fresh, bias=fresh.bias.with_array(jax.random.normal(keys[2], fresh.bias.array.shape, jnp.float32))
    )


def shapes(kind):
    return {"square": (6, 6), "one": (1, 1)} if kind in ("cpl", "sll") else SHAPES


CASES = [(kind, shape) for kind in REPARAMETRIZED for shape in shapes(kind).values()]


@jax.jit
def jacobians(layer, points):
    return jax.vmap(jax.jacobian(layer))(points), jax.vmap(layer)(points)


@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_no_jacobian_exceeds_the_certificate_whatever_the_raw_numbers(kind, shape):
    for name, change in RAW.items():
        layer = module(kind, *shape, change, seed=len(name))
        bound = layer.bound(Bound.start(layer.takes, 2.0), exact_norm)
        points = np.random.default_rng(0).normal(size=(8, shape[1]))
        points *= 2 / np.sqrt((points**2).mean(1, keepdims=True))
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), layer)
            found, images = jacobians(wide, jnp.asarray(points))
        gains, sizes = svd_norm(np.nan_to_num(found)), np.sqrt((np.asarray(images) ** 2).mean(1))
        assert gains.max() <= bound.lipschitz * ROUNDING, name
        assert not (sizes > bound.radius * ROUNDING).any(), name
        if not (kind in ("cayley", "sandwich") and name in STEEP):
            assert np.isfinite(found).all(), name
            assert bound.lipschitz <= 1, name
        assert layer.bound(Bound.start(layer.takes), cap_norm).lipschitz == 1


def aol_oracle(x):
    x = x / (abs(x).max() or 1)
    sums = abs(x @ x.T).sum(1)
    return x / np.sqrt(np.where(sums > 0, sums, 1))[:, None]


def bjorck_oracle(x):
    x = x / (np.sqrt(abs(x @ x.T).sum(1).max()) or 1)
    for _ in range(12):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x


def cayley_oracle(x):
    u, v = x.T[: len(x)], x.T[len(x) :]
    a, eye = u - u.T + v.T @ v, np.eye(len(x))
    return (np.concatenate([eye - a, -2 * v]) @ np.linalg.inv(eye + a)).T


def cpl_oracle(x):
    sigma = np.linalg.svd(x, compute_uv=False)
    return x / (sigma[0] * ((sigma / sigma[0]) ** 128).sum() ** (1 / 128))


ORACLES = {AOL: aol_oracle, BJORCK: bjorck_oracle, CAYLEY: cayley_oracle, CPL: cpl_oracle}


@pytest.mark.parametrize("geometry", ORACLES, ids=lambda geometry: type(geometry).__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matrices_and_their_norms_are_those_of_the_formulas(geometry, shape, getkey):
    array = jax.random.normal(getkey(), shape)
    wide = np.asarray(array, np.float64)
    expected = ORACLES[geometry](wide if shape[0] <= shape[1] else wide.T)
    expected = BELOW * (expected if shape[0] <= shape[1] else expected.T)
    np.testing.assert_allclose(geometry.effective(array), expected, atol=2e-6)
    weight, norm = Weight(array, "w", geometry), np.linalg.svd(expected, compute_uv=False)[0]
    assert norm * (1 - 1e-15) <= exact_norm(weight) <= norm * (1 + 1e-11)
    assert norm * (1 - 1e-6) <= gram_norm(weight) <= norm * 1.01


def precise_aol(x):
    return x / np.array([total.sqrt() if total else 1 for total in abs(x @ x.T).sum(1)])[:, None]


def precise_bjorck(x):
    x = x / abs(x @ x.T).sum(1).max().sqrt()
    for _ in range(12):
        x = (3 * x - x @ x.T @ x) / 2
    return x


def precise_cayley(x):
    """By elimination; I + A has a positive definite symmetric part, so no pivot vanishes."""
    size, u, v = len(x), x.T[: len(x)], x.T[len(x) :]
    a, eye = u - u.T, np.vectorize(Decimal)(np.eye(size))
    a = a + v.T @ v if len(v) else a
    rows = np.concatenate([(eye + a).T, np.concatenate([eye - a, -2 * v]).T], axis=1)
    for k in range(size):
        rows[k] = rows[k] / rows[k, k]
        for other in set(range(size)) - {k}:
            rows[other] = rows[other] - rows[other, k] * rows[k]
    return rows[:, size:]


PRECISE = {"aol": precise_aol, "bjorck": precise_bjorck, "cayley": precise_cayley}


@pytest.mark.parametrize("kind", ["aol", "bjorck", "cayley"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matrices_in_float64_are_off_by_no_more_than_they_say(kind, shape):
    """Against sums of 40 digits, where raw numbers are such that float64 loses some."""
    for name in ("gaussian", "tiny", "badly conditioned", "one small row", "rank one"):
        weight = module(kind, *shape, RAW[name]).weight
        array = np.asarray(weight.array)
        found = weight.geometry.exact_unit(array)
        assert found is not None
        wide = array if shape[0] <= shape[1] else array.T
        with decimal.localcontext(prec=50):
            expected = PRECISE[kind](np.vectorize(Decimal)(wide.astype(np.float64))).astype(np.float64)
        expected = expected if shape[0] <= shape[1] else expected.T
        distance = np.linalg.svd(found[0] - expected, compute_uv=False)[0]
        assert distance <= found[1] * 1.01 + 1e-15, name
        assert found[1] < 1e-6 or name in ("badly conditioned", "one small row"), name
        norm = BELOW * np.linalg.svd(expected, compute_uv=False)[0]
        assert norm <= exact_norm(weight) * (1 + 1e-15), name


@pytest.mark.parametrize("kind", ["aol", "bjorck", "cayley"])
def test_ellipsoids_hold_the_matrices_and_not_balls_alone(kind):
    """Their constants are those of the product of both matrices, by an SVD, and of its rows."""
    first, second = module(kind, 7, 9), module(kind, 4, 7, seed=3)
    second = dataclasses.replace(second, weight=dataclasses.replace(second.weight, name="v"), bias=None)
    model = jax.tree.map(np.asarray, Sequential([first, second]))
    product = math.sqrt(4 / 9) * np.asarray(matrix(second.weight), np.float64) @ np.asarray(matrix(first.weight))
    ellipsoid, steering = tightest(model, Bound.start(Vector((9,))), exact_norm, steps=0)[0]
    sigma = np.linalg.svd(product, compute_uv=False)[0]
    assert sigma * (1 - 1e-6) <= ellipsoid.lipschitz <= sigma * (1 + 1e-4)
    rows = np.linalg.norm(product[:, None] - product[None], axis=-1)
    np.testing.assert_allclose(ellipsoid.pairs(), rows, rtol=1e-4)
    x = np.random.default_rng(0).normal(size=9)
    local = model.spread(Ellipsoid(None, 9, Around(x, 0.1)), Bound.start(Vector((9,)), 9.0), steering.fresh())
    np.testing.assert_allclose(local.around.center, model(jnp.asarray(x, jnp.float32)), atol=1e-5)
    assert 0 < local.around.blur < 1e-6


@pytest.mark.parametrize("geometry", ORACLES, ids=lambda geometry: type(geometry).__name__)
def test_zero_has_a_finite_gradient_and_what_is_no_number_no_norm(geometry):
    gradient = jax.grad(lambda x: geometry.effective(x).sum())(jnp.zeros((3, 4)))
    assert jnp.isfinite(gradient).all()
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            exact_norm(Weight(jnp.full((3, 4), value), "w", geometry))


@pytest.mark.parametrize("kind", ["bjorck", "cayley"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_orthogonal_ones_are(kind, shape):
    layer = module(kind, *shape, change=lambda draw: draw / 3)
    sigma = np.linalg.svd(layer.weight.geometry.effective(layer.weight.array), compute_uv=False)
    np.testing.assert_allclose(sigma, BELOW, atol=2e-6 if kind == "cayley" else 0.02)


@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_attacks_find_nothing_above_the_bounds(kind):
    found = check_bound(module(kind, 6, 6), seeds=1, steps=20)
    assert found.gain >= 0.5 * found.lipschitz


@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_fresh_layers_keep_norms_and_gradients(kind):
    """At first every singular value is 1: of the potentials, J = I - 2QᵀDQ, of sandwiches that of their linear part."""
    layer = REPARAMETRIZED[kind](6, 6, name="w", share=1.0, key=jax.random.key(0))
    layer = dataclasses.replace(layer, activation=Tanh()) if kind == "sandwich" else layer
    sigma = np.linalg.svd(
        jax.jacobian(layer)(jnp.zeros(6) if kind == "sandwich" else jnp.arange(6.0) - 2.5), compute_uv=False
    )
    np.testing.assert_allclose(sigma, 1, atol=0.15 if kind == "cpl" else 1e-4)


@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_images_are_mapped_pixel_by_pixel(kind):
    layer, image = module(kind, 6, 6), jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 6)), jnp.float32)
    expected = jnp.stack([jnp.stack([layer(pixel) for pixel in row]) for row in image])
    np.testing.assert_allclose(layer(image), expected, atol=1e-5)
    bound = layer.bound(Bound.start(Vector((2, 3, 6))), exact_norm)
    flat = layer.bound(Bound.start(Vector((6,))), exact_norm)
    assert (bound.lipschitz, bound.radius, bound.space) == (flat.lipschitz, flat.radius, Vector((2, 3, 6)))
    whole = jax.jacobian(lambda x: layer(x.reshape(2, 3, 6)).reshape(-1))(image.reshape(-1))
    assert svd_norm(whole) <= bound.lipschitz * (1 + 1e-5)
    for space in (Vector((6, 5)), Tokens(6)):
        with pytest.raises(SpaceError):
            layer.bound(Bound.start(space), exact_norm)
    with pytest.raises(ValueError, match="w maps 6 entries"):
        layer(jnp.zeros((6, 5)))


def test_maxmin_inside_has_counterexamples_and_is_refused(getkey):
    """I - 2P has the norm 3 and 2AᵀPB the norm 2, P an exchange of two entries; GELU turns back where it falls."""
    x, sort = jnp.array([1.0, 0.0]), GroupSort()
    assert svd_norm(jax.jacobian(lambda x: x - 2 * sort(x))(x)) == pytest.approx(3)
    first, second = jnp.diag(jnp.array([0.0, 2**0.5])), jnp.diag(jnp.array([2**0.5, 0.0]))
    assert svd_norm(second.T @ jax.jacobian(sort)(x) @ first) == pytest.approx(2)  # A = diag(1, 0), B = diag(0, 1).
    gelu = GELU()
    assert svd_norm(jax.jacobian(lambda x: x - 2 * gelu(x))(jnp.array([-1.0]))) > 1.1
    for kind in ACTIVE:
        for activation in (sort, gelu):
            with pytest.raises(ValueError, match="slopes in"):
                REPARAMETRIZED[kind](4, 4, name="w", share=1.0, key=getkey(), activation=activation)
        layer = REPARAMETRIZED[kind](4, 4, name="w", share=1.0, key=getkey(), activation=Tanh())
        assert svd_norm(jax.jacobian(layer)(jnp.array([2.0, -1.0, 0.1, 0.0]))) <= 1 + 1e-5


def test_sll_is_the_published_layer_with_relu():
    """x - 2WT⁻¹φ(Wᵀx + b), T = diag(Σⱼ|WᵀW|ᵢⱼqⱼ/qᵢ), by raw numbers (W·diag(q))ᵀ."""
    rng = np.random.default_rng(0)
    w, q, b, x = rng.normal(size=(5, 5)), np.exp(rng.normal(size=5)), rng.normal(size=5), rng.normal(size=5)
    t = (abs(w.T @ w) * q[None, :] / q[:, None]).sum(1)
    published = x - 2 * w @ (np.maximum(w.T @ x + b, 0) / t)
    column = Weight(jnp.asarray((b / np.sqrt(t))[:, None], jnp.float32), "b")
    layer = Potential(Weight(jnp.asarray((w * q).T, jnp.float32), "w", AOL), column)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), published, atol=1e-4)


def test_what_is_above_one_is_told():
    """A certificate measures, and does not believe what a construction promises."""

    class Doubled(type(AOL)):
        def unit(self, array):
            return 2 * super().unit(array)

        def unit_norm(self, array):
            return 2 * super().unit_norm(array)

        def exact_unit(self, array):
            q, off = super().exact_unit(array)
            return 2 * q, 2 * off

    weight = Weight(jnp.eye(4), "w", Doubled())
    certificate = Certificate.of(UnitLinear(weight))
    assert certificate.lipschitz == pytest.approx(2, rel=1e-5)
    assert not certificate.caps_hold
    assert "(above)" in str(certificate)
    assert float(Potential(weight).bound(Bound.start(Vector((4,))), exact_norm).lipschitz) == pytest.approx(7, rel=1e-4)
    steep = Certificate.of(module("cayley", 6, 6, RAW["large"]))
    assert steep.lipschitz > 0.99


def test_mistakes_are_told_in_a_sentence(getkey):
    with pytest.raises(ValueError, match="w is residual, so that it keeps its size"):
        REPARAMETRIZED["sll"](4, 5, name="w", share=1.0, key=getkey())
    with pytest.raises(ValueError, match="takes a weight of a Raw geometry"):
        UnitLinear(Weight(jnp.eye(4), "w"))
    layer = set_caps(module("aol", 4, 4), {"w": 0.5})
    with pytest.raises(ValueError, match="has no cap"):
        seal(layer)
    assert layer.bound(Bound.start(layer.takes), cap_norm).lipschitz == 1  # Whatever cap it was given.


NETS = [*((kind, {"bias": kind == "sll"}) for kind in REPARAMETRIZED), ("aol", {"residual": 0.5})]


@pytest.mark.parametrize(("kind", "options"), NETS, ids=str)
def test_trained_networks_are_certified_at_one(kind, options):
    recipe = make(layer=kind, width=16, depth=4, batch_size=64, optimizer="adamw", lr=0.01, steps=12, **options)
    recipe.check()
    mesh = make_mesh()
    state, step = init_state(recipe, mesh), step_of(recipe, mesh)
    first, losses = jax.device_get(state.model), []
    for batch in DIGITS.batches(batch_size=64, count=12, seed=0):
        state, metrics = step(state, jax.device_put(batch, batched(mesh)))
        losses.append(float(metrics["loss"]))
    model = filled(recipe.abstract_model(), state.model)
    assert losses[-1] < losses[0]
    for before, after in zip(weights(first), weights(model), strict=True):
        assert not np.array_equal(before.array, after.array), before.name
    certificate = Certificate.of(model)
    assert certificate.lipschitz <= 1
    assert float(certificate.a_priori.lipschitz) == pytest.approx(1, abs=1e-13)
    assert certificate.caps_hold
    rows = {row.name: row for row in certificate.rows}
    assert list(rows) == [weight.name for weight in weights(model)]
    assert all(0.5 < rows[name].norm <= rows[name].cap == 1 for name in ("layers.0", "layers.1", "layers.2", "head"))


def test_muon_moves_raw_numbers_too():
    recipe = make(layer="cayley", width=16, batch_size=64, optimizer="muon", lr=0.1, steps=3)
    recipe.check()
    mesh = make_mesh()
    state, step = init_state(recipe, mesh), step_of(recipe, mesh)
    for batch in DIGITS.batches(batch_size=64, count=3, seed=0):
        state, metrics = step(state, jax.device_put(batch, batched(mesh)))
    assert jnp.isfinite(metrics["loss"])
    assert Certificate.of(filled(recipe.abstract_model(), state.model)).lipschitz <= 1


def test_mlps_are_put_together_as_they_say(getkey):
    kinds = {
        "plain": [Linear] * 4,
        "cpl": [UnitLinear, Potential, Potential, UnitLinear],
        "sandwich": [type(module("sandwich", 4, 4))] * 3 + [UnitLinear],
    }
    for kind, expected in kinds.items():
        mlp = MLP(12, 8, 3, depth=4, layer=kind, key=getkey())
        layers = [getattr(layer, "layers", [layer])[0] for layer in mlp.body.layers[1:]]
        assert [type(layer) for layer in layers] == expected
        assert mlp(jnp.ones(12)).shape == (3,)
    bias = weights(MLP(12, 8, 3, layer="aol", bias=True, cap=2.0, key=getkey()))[1]
    assert (bias.name, bias.cap) == ("layers.0.bias", 2.0)
    assert isinstance(MLP(12, 8, 3, layer="cpl", key=getkey()).body.layers[2].activation, ReLU)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"layer": "cpl", "depth": 2}, "--depth of at least 3"),
        ({"layer": "sandwich", "depth": 1}, "--depth of at least 2"),
        ({"layer": "sll", "residual": 0.5}, "leave out --residual"),
        ({"layer": "sll", "activation": "maxmin"}, "--activation relu or tanh"),
        ({"layer": "sandwich", "activation": "gelu"}, "--activation relu or tanh"),
    ],
)
def test_what_makes_no_sense_is_refused(options, flag):
    assert flag in MLPConfig(**options).conflict()


def test_recipes_stored_before_there_were_layers_load():
    stored = make().to_json()
    assert stored["model"].pop("layer") == "plain"
    assert Recipe.from_json(stored) == make()
