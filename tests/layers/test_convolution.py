"""Layers of images, and potential residuals: outputs against definitions, bounds against attacks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.deviation import Beside, stored
from lipzoo.layers.activation import GELU, ReLU, Tanh
from lipzoo.layers.compose import PerToken, Sequential
from lipzoo.layers.convolution import Conv2d
from lipzoo.layers.linear import Flatten, Linear
from lipzoo.layers.pooling import AveragePool, MaxPool
from lipzoo.layers.potential import PotentialResidual
from lipzoo.layers.sorting import GroupSort
from lipzoo.testing import check_bound
from lipzoo.theory.bound import Bound
from lipzoo.theory.convolution import Convolution
from lipzoo.theory.functions import arithmetic
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.space import SpaceError, Tokens, Vector
from lipzoo.theory.weight import Weight, cap_norm, exact_norm, gram_norm, set_caps
from tests.theory.test_convolution import CASES, dense, kernel


def column(size, seed=5):
    draw = np.random.default_rng(seed).normal(size=(size, 1)).astype(np.float32)
    return Weight(jnp.asarray(draw), "bias", COLUMN)


def conv(*case, into=4, out=4, bias=False, scale=1.0, seed=0):
    weight = kernel(Convolution(*case), into, out, seed)
    weight = weight.with_array(weight.array * jnp.float32(scale / exact_norm(weight)))
    return Conv2d(weight, column(out) if bias else None)


def matrix(out, into, norm, seed=0, name="w"):
    draw = np.random.default_rng(seed).normal(size=(out, into)).astype(np.float32)
    weight = Weight(jnp.asarray(draw), name)
    return Linear(weight.with_array(weight.array * jnp.float32(norm / exact_norm(weight))), column(out))


IMAGE = Vector((4, 4, 2))
MODULES = {
    "zero": (lambda: conv((4, 4), into=2, out=3, bias=True), IMAGE),
    "circular": (lambda: conv((4, 4), 3, 1, 1, "circular", into=2, out=3), IMAGE),
    "stride": (lambda: conv((4, 4), 3, 2, 2, into=2, out=4), IMAGE),
    "average": (lambda: AveragePool(2), IMAGE),
    "max": (lambda: MaxPool(2), IMAGE),
    "potential": (lambda: PotentialResidual(matrix(6, 4, 1.5), ReLU(), 2 / 1.5**2 * 4 / 6), Vector((4,))),
    "too long a step": (lambda: PotentialResidual(matrix(4, 4, 1.0), ReLU(), 2.7), Vector((4,))),
    "tanh": (lambda: PotentialResidual(matrix(3, 4, 1.0), Tanh(0.5), 2.5), Vector((4,))),
    "potential of tokens": (lambda: PerToken(PotentialResidual(matrix(6, 4, 1.0), ReLU(), 1.3)), Tokens(4)),
    "potential of pixels": (
        lambda: PotentialResidual(conv((4, 4), 1, into=2, out=3, bias=True), ReLU(), 2.0),
        IMAGE,
    ),
    "potential of images": (
        lambda: PotentialResidual(conv((4, 4), 3, 1, 2, into=2, out=4, bias=True), ReLU(), 1.2),
        IMAGE,
    ),
    "circular potential": (
        lambda: PotentialResidual(conv((4, 4), 3, 1, 1, "circular", into=2, out=4), Tanh(), 1.2),
        IMAGE,
    ),
}


ATTACKED = ("zero", "stride", "max", "potential", "potential of tokens", "potential of images")


@pytest.mark.parametrize("name", ATTACKED)
def test_bounds_withstand_an_attack(name):
    make, space = MODULES[name]
    found = check_bound(make(), space, seeds=1, steps=30)
    assert found.gain >= 0.4 * found.lipschitz


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_convolution_is_what_its_definition_says(case):
    module = Conv2d(kernel(Convolution(*case)), column(8))
    x = np.random.default_rng(1).normal(size=module.takes.shape)
    ho, wo = module.geometry.out_size
    y = (dense(module.weight) @ x.transpose(2, 0, 1).ravel()).reshape(-1, ho, wo).transpose(1, 2, 0)
    y = y + np.asarray(module.bias.array, np.float64)[:, 0]
    found = module(jnp.asarray(x, jnp.float32))
    assert found.shape == module.gives.shape
    np.testing.assert_allclose(found, y, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case[2] == 1], ids=str)
def test_what_is_transposed_is_the_transposed_matrix(case):
    module = Conv2d(kernel(Convolution(*case)))
    y = np.random.default_rng(1).normal(size=module.gives.shape)
    x = (dense(module.weight).T @ y.transpose(2, 0, 1).ravel()).reshape(-1, *case[0]).transpose(1, 2, 0)
    np.testing.assert_allclose(module.transposed(jnp.asarray(y, jnp.float32)), x, atol=1e-4)


@pytest.mark.parametrize(("pool", "of"), [(AveragePool(2), np.mean), (MaxPool(2), np.max)])
def test_pooling_takes_squares(pool, of):
    x = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    y = np.zeros((2, 3, 3))
    for i, j in itertools.product(range(2), range(3)):
        y[i, j] = of(x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(0, 1))
    np.testing.assert_allclose(pool(jnp.asarray(x)), y, rtol=1e-5, atol=1e-7)


def test_the_bounds_of_pooling_are_reached():
    x, start = jnp.ones((4, 4, 1)), Bound.start(Vector((4, 4, 1)))
    bound = AveragePool(2).bound(start, exact_norm)
    assert (bound.lipschitz, bound.radius, bound.space) == (1, 1, Vector((2, 2, 1)))
    assert float(jnp.sqrt(jnp.mean(AveragePool(2)(x) ** 2))) == 1
    peaks = jnp.zeros((4, 4, 1)).at[::2, ::2].set(2)  # RMS 1, and after pooling 2.
    assert float(jnp.sqrt(jnp.mean(MaxPool(2)(peaks) ** 2))) == 2
    assert MaxPool(2).bound(start, exact_norm).lipschitz == pytest.approx(2)


@pytest.mark.parametrize("name", [name for name in MODULES if "potential" in name and "tokens" not in name])
def test_no_slope_of_a_potential_residual_is_above_its_bound(name):
    make, space = MODULES[name]
    bound = make().bound(Bound.start(space), exact_norm)
    x = np.random.default_rng(0).normal(size=(16, *space.shape)) * 3
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), make())
        slopes = np.asarray(jax.jit(jax.vmap(jax.jacobian(wide)))(x)).reshape(16, space.size, space.size)
    assert np.linalg.svd(slopes, compute_uv=False).max() <= bound.lipschitz * (1 + 1e-12)


def test_a_potential_residual_keeps_what_a_convex_one_would_shrink():
    """Up to the step 2/σ₁² it is 1-Lipschitz, and reached; beyond, by as much as is said."""
    eye = Linear(Weight(jnp.eye(4), "w"))
    for step, lipschitz in ((0.5, 1.0), (2.0, 1.0), (2.5, 1.5), (4.0, 3.0)):
        module = PotentialResidual(eye, ReLU(), step)
        bound = module.bound(Bound.start(Vector((4,))), exact_norm)
        assert bound.lipschitz == pytest.approx(lipschitz, rel=1e-12)
        slopes = [abs(module(sign * jnp.ones(4))[0]) for sign in (1, -1)]  # A line on either side of 0.
        assert max(slopes) == pytest.approx(lipschitz)
    capped = set_caps(PotentialResidual(eye, ReLU(), 2 / 1.5**2), {"w": 1.5})
    assert capped.bound(Bound.start(Vector((4,))), cap_norm).lipschitz == pytest.approx(1, rel=1e-12)
    inside = jax.jit(lambda m: m.bound(Bound.start(m.takes, jnp.ones(())), gram_norm).lipschitz)(module)
    assert 3 <= float(inside) <= 3.02


@pytest.mark.parametrize(
    ("activation", "x"), [(GroupSort(), [1.0, -1.0]), (GELU(1.0), [-1.5, 0.0]), (GELU(), [-1.5, 0.0])]
)
def test_what_has_no_potential_is_refused_and_is_steeper(activation, x):
    """With W = I and h = 2, which is 1-Lipschitz with ReLU."""
    with pytest.raises(TypeError, match="it can be steeper than 1"):
        PotentialResidual(Linear(Weight(jnp.eye(2), "w")), activation, 2.0)
    slopes = jax.jacobian(lambda x: x - 2 * activation(x))(jnp.asarray(x))
    found = np.linalg.svd(np.asarray(slopes), compute_uv=False)[0]
    assert found > (2.9 if isinstance(activation, GroupSort) else 1.2)


def test_mistakes_are_told():
    eye = Linear(Weight(jnp.eye(2), "w"))
    with pytest.raises(ValueError, match="stride 1"):
        PotentialResidual(conv((4, 4), 3, 2), ReLU(), 1.0)
    with pytest.raises(ValueError, match="must be positive"):
        PotentialResidual(eye, ReLU(), 0.0)
    with pytest.raises(ValueError, match="geometry is a Convolution"):
        Conv2d(Weight(jnp.ones((4, 9)), "w"))
    with pytest.raises(SpaceError, match="kernel takes"):
        conv((4, 4)).bound(Bound.start(Vector((4, 4, 3))), exact_norm)
    with pytest.raises(SpaceError, match="w takes one vector of 2"):
        PotentialResidual(eye, ReLU(), 1.0).bound(Bound.start(Vector((3,))), exact_norm)
    for shape in ((5, 4, 2), (8,)):
        with pytest.raises(SpaceError, match="squares of 2×2 pixels divide"):
            MaxPool(2).bound(Bound.start(Vector(shape)), exact_norm)
    with pytest.raises(ValueError, match="takes one example of shape"):
        conv((4, 4))(jnp.ones((4, 5, 4)))


DEVIATING = {name: pair for name, pair in MODULES.items() if isinstance(pair[1], Vector)} | {
    "net": (
        lambda: Sequential(
            [conv((4, 4), into=2, out=4, bias=True), ReLU(), AveragePool(2), Flatten(), matrix(3, 16, 2.0, name="head")]
        ),
        IMAGE,
    )
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("name", DEVIATING)
def test_what_runs_is_no_further_than_proved(name, dtype):
    make, space = DEVIATING[name]
    model = jax.tree.map(np.asarray, make())
    low = stored(model, dtype)
    x = np.random.default_rng(3).normal(size=(100, *space.shape)).astype(np.float32)
    x *= np.geomspace(1e-3, 3, 100).reshape(-1, *[1] * len(space.shape)).astype(np.float32)
    radius = float(np.sqrt((x.reshape(100, -1) ** 2).mean(-1)).max()) * (1 + 1e-6)
    runs = Beside(model, low).runs(arithmetic(dtype))
    bound = model.bound(Bound.start(space, radius, runs), exact_norm)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), model)
        meant = np.asarray(jax.vmap(wide)(jnp.asarray(x, jnp.float64)))
    kind = jnp.float32 if dtype == "float32" else jnp.bfloat16
    low = jax.tree.map(lambda a: jnp.asarray(a).astype(kind), low)
    ran = np.asarray(jax.vmap(low)(jnp.asarray(x).astype(kind))).astype(np.float64)
    off = np.sqrt(((ran - meant).reshape(100, -1) ** 2).mean(-1)).max()
    assert off <= bound.deviation
    if dtype == "float32":
        assert bound.deviation <= 1e-4
