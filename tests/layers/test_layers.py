"""Bounds of modules against brute force: sampled radii, and gradient ascent on the gain."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import SvdCap
from lipzoo.layers.activation import GELU_DIVISOR, GELU_SLOPE, SquaredReLU
from lipzoo.layers.compose import PerToken, Residual
from lipzoo.layers.linear import Affine
from lipzoo.layers.normalization import Center, RMSNorm, layer_norm
from lipzoo.models import (
    GELU,
    MLP,
    ConvexResidual,
    Flatten,
    GroupSort,
    Identity,
    Linear,
    ReLU,
    Scale,
    Sequential,
    Tanh,
)
from lipzoo.models.lipsformer import WeightedResidual, center_norm
from lipzoo.theory.bound import Bound
from lipzoo.theory.geometry import COLUMN, ENTRIES
from lipzoo.theory.space import Tokens, Vector
from lipzoo.theory.weight import Weight, cap_norm, check_names, exact_norm, gram_norm, set_caps, weights
from tests.conftest import svd_norm


def linear(key, out_size, in_size, *, scale=1.0, bias=False, name="w"):
    draw = scale * jax.random.normal(key, (out_size, in_size)) / np.sqrt(in_size)
    column = Weight(0.3 * jax.random.normal(key, (out_size, 1)), f"{name}.bias", COLUMN) if bias else None
    return Linear(Weight(draw, name), column)


def affine(key):
    gain = Weight(jax.random.normal(key, (8, 1, 1)), "gain", ENTRIES)
    return Affine(gain, Weight(0.3 * jax.random.normal(key, (8, 1)), "bias", COLUMN))


def rms(x):
    return jnp.sqrt(jnp.mean(x**2, axis=-1))


MODULES = {
    "identity": lambda key: Identity(),
    "flatten": lambda key: Flatten(),
    "relu": lambda key: ReLU(),
    "gelu": lambda key: GELU(),
    "exact gelu": lambda key: GELU(exact=True),
    "plain gelu": lambda key: GELU(divisor=1.0),
    "tanh": lambda key: Tanh(),
    "tanh cap": lambda key: Tanh(3.0),
    "maxmin": lambda key: GroupSort(),
    "groupsort": lambda key: GroupSort(group=4),
    "scale": lambda key: Scale(-2.5),
    "linear": lambda key: linear(key, 6, 8),
    "biased": lambda key: linear(key, 6, 8, bias=True),
    "squared relu": lambda key: SquaredReLU(8),
    "rms norm": lambda key: RMSNorm(0.5),
    "steep rms norm": lambda key: RMSNorm(1e-3),
    "layer norm": lambda key: layer_norm(0.5),
    "center": lambda key: Center(-1.5),
    "affine": lambda key: affine(key),
    "plain residual": lambda key: Residual(Sequential([linear(key, 8, 8, scale=3.0), ReLU()])),
    "weighted residual": lambda key: WeightedResidual(PerToken(linear(key, 8, 8)), affine(key).gain),
    "center norm": lambda key: center_norm(8, "norm", 2.0, 1.0),
    "residual": lambda key: ConvexResidual(Sequential([linear(key, 8, 8, scale=3.0), ReLU()]), 0.3),
    "mlp": lambda key: MLP(
        8, 16, 5, depth=4, activation="gelu", bias=True, residual=0.5, final_scale=2.0, zero_init=False, key=key
    ),
}


def into_ball(x, radius):
    return x * jnp.minimum(1, radius / rms(x))[:, None]


def gain_and_size(module, x, v, radius):
    """Of each vector: by how much its direction is stretched, and how large the output is."""
    run = module if isinstance(module, WeightedResidual) else jax.vmap(module)
    output, image = jax.jvp(run, (into_ball(x, radius),), (v,))
    return rms(image) / rms(v), rms(output)


@jax.jit
def climb(module, x, v, radius):
    """One step of ascent, and the gains and sizes before it. Compiled once for all seeds and radii of a module."""

    def together(x, v):
        gain, size = gain_and_size(module, x, v, radius)
        return gain.sum() + size.sum(), (gain, size)

    (_, found), slopes = jax.value_and_grad(together, (0, 1), has_aux=True)(x, v)
    move = lambda x, g: x + 0.3 * g / (rms(g)[:, None] + 1e-9)  # noqa: E731
    return *map(move, (x, v), slopes), *found


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("radius", [0.3, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_output_exceeds_the_radius_and_no_gain_the_lipschitz_bound(name, radius, seed):
    """Gradient ascent on the output's norm and on the gain of the Jacobian, from many starts inside the ball."""
    module = MODULES[name](jax.random.key(seed))
    space = Tokens(8) if isinstance(module, WeightedResidual) else Vector((8,))
    bound = module.bound(Bound.start(space, radius), exact_norm)
    x = jax.random.normal(jax.random.key(seed + 10), (32, 8))
    v = jax.random.normal(jax.random.key(seed + 20), (32, 8))
    for _ in range(41):
        x, v, gain, size = climb(module, x, v, jnp.float32(radius))
    assert float(gain.max()) <= float(bound.lipschitz) * (1 + 1e-5)
    assert float(size.max()) <= float(bound.radius) * (1 + 1e-5)
    if (
        name not in ("mlp", "steep rms norm") and "residual" not in name
    ):  # A single layer's bound is attained, up to the ascent.
        assert float(gain.max()) >= 0.5 * float(bound.lipschitz)


@pytest.mark.parametrize(("form", "approximate"), [("exact", False), ("tanh", True)])
def test_gelu_slope_is_the_supremum_rounded_up(form, approximate):
    with jax.enable_x64(True):
        slope = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=approximate)))
        largest = float(slope(jnp.linspace(-10.0, 10.0, 2_000_001)).max())
    assert largest + 1e-14 <= GELU_SLOPE[form] <= GELU_DIVISOR
    assert GELU_SLOPE[form] - largest < 1e-9
    if form == "exact":  # The maximum is at √2, in closed form.
        assert 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi) + 1e-14 <= GELU_SLOPE[form]


def test_measures_share_one_bound_method(getkey):
    mlp = MLP(12, 16, 4, cap=1.5, zero_init=False, key=getkey())
    start = Bound.start(mlp.takes)
    exact = mlp.bound(start, exact_norm)
    product = np.prod([svd_norm(w.array) for w in weights(mlp)])
    assert exact.lipschitz == pytest.approx(product, rel=1e-9)
    assert exact.lipschitz >= product
    assert mlp.bound(start, cap_norm).lipschitz == pytest.approx(1.5**3)
    gram = jax.jit(lambda m: m.bound(Bound.start(m.takes, jnp.ones(())), gram_norm))(mlp)
    assert exact.lipschitz <= float(gram.lipschitz) <= 1.01 * exact.lipschitz


def test_project_brings_a_module_under_its_caps(getkey):
    mlp = MLP(12, 16, 4, bias=True, zero_init=False, key=getkey())
    mlp = set_caps(mlp, {"layers.0": 0.5, "head": 0.25})
    projected = mlp.project(SvdCap())
    norms = {w.name: svd_norm(w.array) for w in weights(projected)}
    assert norms["layers.0"] <= 0.5
    assert norms["head"] <= 0.25
    assert norms["layers.1"] == pytest.approx(1.0, abs=1e-4)
    assert all(a.cap == b.cap for a, b in zip(weights(mlp), weights(projected), strict=True))


def test_mistakes_in_building_are_refused(getkey):
    with pytest.raises(ValueError, match="no weight is called nose"):
        set_caps(MLP(4, 4, 2, key=getkey()), {"nose": 1.0})
    with pytest.raises(ValueError, match="unique names"):
        check_names(Sequential([linear(getkey(), 4, 4), linear(getkey(), 4, 4)]))
    with pytest.raises(ValueError, match="convex residual"):
        ConvexResidual(ReLU(), 1.5)
    with pytest.raises(ValueError, match="do not divide"):
        GroupSort()(jnp.zeros(3))
    with pytest.raises(ValueError, match="squared ReLU of size 4 was given a vector of 3"):
        SquaredReLU(4)(jnp.zeros(3))
    for make in (lambda: GELU(-1.0), lambda: Tanh(-1.0), lambda: RMSNorm(0.0)):
        with pytest.raises(ValueError, match="must be positive and finite"):
            make()
