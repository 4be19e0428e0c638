"""Ellipsoids against NumPy's SVD, exact fractions, random slopes, and pairs of inputs."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.tighten import tightest
from lipzoo.layers.activation import GELU, Identity, ReLU, SquaredReLU, Tanh
from lipzoo.layers.compose import ConvexResidual, Residual, Sequential
from lipzoo.layers.linear import Affine, Flatten, Linear, Scale
from lipzoo.layers.normalization import Center, RMSNorm, layer_norm
from lipzoo.layers.sorting import GroupSort
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Around, Ellipsoid
from lipzoo.theory.geometry import COLUMN, ENTRIES
from lipzoo.theory.slopes import NoEllipsoid
from lipzoo.theory.space import SpaceError, Vector
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Weight, exact_norm

GAIN = jnp.asarray([1.2, -0.7, 0.0, 2.0, 0.5, -1.5, 0.9, 1.0], jnp.float32)
AFFINE = Affine(Weight(GAIN[:, None, None], "gain", ENTRIES), Weight(GAIN[:, None] / 3, "shift", COLUMN))
NORMS = [RMSNorm(), RMSNorm(0.1), Center(1.3), layer_norm(0.05), AFFINE]
FULL = [ReLU(), GELU(), GELU(exact=True), Tanh(), Tanh(0.3), GroupSort(), GroupSort(4), Identity(), SquaredReLU(8)]
FULL += NORMS


def random(*shape, seed=0, size=1.0):
    return np.random.default_rng(seed).normal(size=shape) * size / np.sqrt(shape[-1])


def linear(out, in_, name, seed=0, size=1.0, bias=False):
    array = jnp.asarray(random(out, in_, seed=seed, size=size), jnp.float32)
    column = Weight(jnp.asarray(random(out, 1, seed=seed + 50, size=0.3), jnp.float32), f"{name}.b", COLUMN)
    return Linear(Weight(array, name), column if bias else None)


def spread(model, radius=1.0, x=None, reach=0.0, steers=()):
    model = jax.tree.map(np.asarray, model)
    space = model.takes
    around = None if x is None else Around(np.asarray(x, np.float64), reach)
    return model.spread(Ellipsoid(None, space.size, around), Bound.start(space, radius), Steering(exact_norm, steers))


def test_matrices_one_after_the_other_have_the_norm_of_their_product():
    model = Sequential([Flatten(), linear(7, 5, "a", 1), Scale(-1.5), linear(4, 7, "b", 2)])
    product = (
        -1.5
        * np.asarray(model.layers[3].weight.array, np.float64)
        @ np.asarray(model.layers[1].weight.array, np.float64)
    )
    end = spread(model)
    true = np.linalg.norm(product, 2)
    assert true <= end.lipschitz <= true * (1 + 1e-12)
    gaps = np.linalg.norm(product[:, None] - product[None], axis=-1)
    assert (gaps <= end.pairs()).all()
    np.testing.assert_allclose(end.pairs(), gaps, rtol=1e-9, atol=1e-12)


def fractions(matrix):
    return [[Fraction(float(x)) for x in row] for row in matrix]


def product(left, right):
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right)] for row in left]  # noqa: B905


@pytest.mark.parametrize("seed", range(4))
def test_what_roundings_change_is_added(seed):
    """S - WS₀Wᵀ in exact fractions is positive semidefinite: by its leading minors."""
    W, S = random(4, 5, seed=seed), random(5, 5, seed=seed + 9)
    S = S @ S.T
    S = (S + S.T) / 2
    image = Ellipsoid(S, 5).through(W, np.linalg.norm(W, 2)).matrix
    true = product(product(fractions(W), fractions(S)), fractions(W.T))
    image = fractions(image)
    rest = [[a - b for a, b in zip(r, s, strict=True)] for r, s in zip(image, true, strict=True)]
    for step in range(4):  # Gauss: every pivot must be positive.
        assert rest[step][step] > 0
        for row in range(step + 1, 4):
            factor = rest[row][step] / rest[step][step]
            rest[row] = [x - factor * y for x, y in zip(rest[row], rest[step], strict=True)]


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-1.0, 1.0), (-0.13, 1.0), (0.5, 0.5), (0.25, 3.0)])
@pytest.mark.parametrize("steer", [0.0, 1.0, 5.0])
def test_no_slopes_within_the_range_go_beyond(slopes, steer):
    """⟨a, DVx⟩² ≤ aᵀSa for random diagonal D with the slopes, whatever the multipliers."""
    rng = np.random.default_rng(3)
    V = random(9, 6, seed=1)
    before = Ellipsoid(None, 6).through(V, np.linalg.norm(V, 2))
    after = before.slopes(*slopes, steer * rng.normal(size=9)).matrix
    for _ in range(300):
        D = rng.choice([slopes[0], slopes[1], rng.uniform(*slopes)], size=9)
        assert np.linalg.eigvalsh(after - (D[:, None] * V) @ (D[:, None] * V).T)[0] >= -1e-12
    mixed = np.where(np.arange(9) < 4, slopes[0], slopes[1]), np.full(9, slopes[1])  # Some are known.
    after = before.slopes(*mixed, steer * rng.normal(size=9)).matrix
    for _ in range(100):
        D = rng.uniform(*mixed)
        assert np.linalg.eigvalsh(after - (D[:, None] * V) @ (D[:, None] * V).T)[0] >= -1e-12


def test_relu_forgets_less_than_a_ball():
    """For S = I, and slopes in [0, 1], nothing is lost; for a spectrum that is not flat, ECLipsE-Fast's formula."""
    flat = Ellipsoid(None, 5).slopes(0.0, 1.0, 0.0)
    assert 1 <= flat.lipschitz <= 1 + 1e-9
    W, V = random(6, 6, seed=4), random(3, 6, seed=5)
    A = W @ W.T
    top = np.linalg.norm(A, 2)
    M = 2 / top * np.eye(6) - A / top**2
    expected = np.sqrt(np.linalg.norm(V @ np.linalg.inv(M) @ V.T, 2))
    found = Ellipsoid(None, 6).through(W, 9.0).slopes(0.0, 1.0, 0.0).through(V, 9.0).lipschitz
    assert found == pytest.approx(expected, rel=1e-3)  # The norm of A is estimated there.
    assert expected < np.linalg.norm(V, 2) * np.linalg.norm(W, 2)


def network(activation, seed, bias=True):
    middle = Sequential([linear(8, 8, "b", seed + 1, 1.2, bias), activation])
    if not isinstance(activation, (SquaredReLU, Identity, Affine)):  # Weights have one name each.
        middle = ConvexResidual(middle, 0.4) if seed % 2 else Residual(middle)
    return Sequential([Flatten(), linear(8, 5, "a", seed, 1.5, bias), activation, middle, linear(3, 8, "c", seed + 2)])


@pytest.mark.parametrize("activation", FULL, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("seed", range(3))
def test_no_jacobian_and_no_pair_goes_beyond(activation, seed):
    model = network(activation, seed)
    rng = np.random.default_rng(seed)
    end = spread(model)
    x = rng.normal(size=(200, 5))
    x = jnp.asarray(x / np.maximum(1, np.sqrt((x**2).mean(1)))[:, None], jnp.float32)
    jacobians = np.asarray(jax.vmap(jax.jacobian(model))(x))
    assert (np.linalg.norm(jacobians, 2, axis=(1, 2)) <= end.lipschitz * (1 + 1e-5)).all()
    gaps = np.linalg.norm(jacobians[:, :, None] - jacobians[:, None], axis=-1).max(0)
    assert (gaps <= end.pairs() * (1 + 1e-5)).all()


@pytest.mark.parametrize("activation", FULL, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("reach", [0.0, 0.05, 0.4])
def test_around_one_input_no_pair_goes_beyond(activation, reach):
    model = network(activation, 1)
    rng = np.random.default_rng(1)
    middle = rng.normal(size=5) / 3
    end = spread(model, radius=float(np.linalg.norm(middle) + reach) / np.sqrt(5), x=middle, reach=reach)
    x = rng.normal(size=(400, 5))
    x = middle + reach * x / np.linalg.norm(x, axis=1)[:, None] * rng.uniform(size=(400, 1)) ** 0.2
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), model)
        images = np.asarray(jax.vmap(wide)(jnp.asarray(x)))
        jacobians = np.asarray(jax.vmap(jax.jacobian(wide))(jnp.asarray(x)))
        there = np.asarray(wide(jnp.asarray(middle)))
    assert np.linalg.norm(end.around.center - there) <= end.around.blur + 1e-14
    steep = isinstance(activation, RMSNorm) and activation.epsilon < 0.1  # It multiplies by up to 1000.
    assert end.around.blur < (1e-10 if steep else 1e-11)
    assert (np.linalg.norm(jacobians, 2, axis=(1, 2)) <= end.lipschitz * (1 + 1e-9)).all()
    low, high = end.interval()
    assert (images >= low - 1e-12).all()
    assert (images <= high + 1e-12).all()
    moved = np.linalg.norm(images[1:] - images[:-1], axis=1)
    assert (moved <= end.lipschitz * np.linalg.norm(x[1:] - x[:-1], axis=1) + 1e-12).all()
    assert end.lipschitz <= spread(model, radius=2.0).lipschitz * (1 + 1e-6)


def test_a_ball_of_no_size_has_the_norm_of_the_jacobian():
    model = network(ReLU(), 2)
    model = Sequential([layer for layer in model.layers if not isinstance(layer, (Residual, ConvexResidual))])
    middle = np.random.default_rng(0).normal(size=5)
    true = np.linalg.norm(np.asarray(jax.jacobian(model)(jnp.asarray(middle, jnp.float32))), 2)
    assert spread(model, radius=3.0, x=middle, reach=1e-9).lipschitz == pytest.approx(true, rel=1e-4)


def test_slopes_of_gelu_lie_in_their_intervals():
    x = np.linspace(-8, 8, 4001)
    for exact in (False, True):
        with jax.enable_x64(True):
            slope = np.asarray(jax.vmap(jax.grad(lambda x, e=exact: GELU(exact=e)(x)))(jnp.asarray(x)))
            value = np.asarray(GELU(exact=exact)(jnp.asarray(x)))
        np.testing.assert_allclose(GELU(exact=exact).values(x), value, atol=1e-14)
        for width in (0.0, 0.01, 0.5, 3.0):
            low, high = GELU(exact=exact).slopes(x - width, x + width)
            for shift in np.linspace(-width, width, 7):
                moved = np.interp(x + shift, x, slope)
                inside = abs(x + shift) < 8
                assert (low <= moved + 1e-5)[inside].all()
                assert (moved <= high + 1e-5)[inside].all()


def test_numbers_that_float64_has_no_room_for_are_refused():
    with pytest.raises(NoEllipsoid):
        _ = Ellipsoid(np.eye(3) * 1e250, 3).top
    with pytest.raises(NoEllipsoid):
        Ellipsoid(np.eye(3) * 1e-250, 3).slopes(0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "factors",
    [(1e-81, 1e-81, 1e81, 1e81), (1e-80, 1.1e-80, 1e80, 1e80 / 1.1), (1e-101,), (1e170,), (1e-37,) * 6 + (1e37,) * 6],
    ids=str,
)
def test_what_vanishes_or_overflows_on_the_way_has_no_ellipsoid_but_a_bound(factors):
    model = Sequential([Linear(Weight(jnp.eye(4), "w")), *map(Scale, factors)])
    true = float(np.prod(np.array(factors, np.longdouble)))
    found = tightest(jax.tree.map(np.asarray, model), Bound.start(model.takes), exact_norm, steps=0)
    assert all(ellipsoid.lipschitz >= true * (1 - 1e-12) for ellipsoid, _ in found)
    tiny = Sequential([Linear(Weight(jnp.full((4, 4), 1e-37) * jnp.eye(4), f"w{i}")) for i in range(9)])
    assert Certificate.of(tiny).certified.log10_lipschitz > -334


def test_a_subclass_with_another_map_does_not_inherit_what_was_known_of_the_first():
    class Twice(ReLU):
        def __call__(self, x):
            return 2 * jnp.abs(x)

        def bound(self, incoming, measure):
            return incoming.scale(2.0)

    model = Sequential([Linear(Weight(jnp.eye(4), "w")), Twice()])
    assert Certificate.of(model).lipschitz >= 2
    assert not Twice.tokenwise
    with pytest.raises(SpaceError, match="Twice has no bound around one input"):
        spread(model, x=np.zeros(4), reach=0.1)


def test_a_sum_whose_parts_cancel_is_still_above_both():
    signs = np.array([[1.0]])
    for _ in range(6):
        signs = np.block([[signs, signs], [signs, -signs]])
    size = len(signs)
    first, second = (1.1250001 * (9 * np.eye(size) + sign * signs) for sign in (1, -1))
    total = Ellipsoid(first, size).plus(Ellipsoid(second, size), (1.0, 1.0)).matrix
    assert np.linalg.eigvalsh(total - 2 * first - 2 * second)[0] >= 0


def test_a_normalization_of_images_looks_at_rows():
    """Each row of 3×4 pixels is normalized by itself, and one of them is small."""
    model = Sequential([RMSNorm(1e-3), Center(), Flatten(), linear(5, 12, "a", 3)])
    rng = np.random.default_rng(2)
    middle, reach = rng.normal(size=(3, 4)) * np.array([[1.0], [0.05], [0.4]]), 0.03
    start = Bound.start(Vector((3, 4)), 2.0)
    around = Ellipsoid(None, 12, Around(middle.ravel(), reach))
    hollow = jax.tree.map(np.asarray, model)
    end, everywhere = (hollow.spread(x, start, Steering(exact_norm)) for x in (around, Ellipsoid(None, 12)))
    moves = rng.normal(size=(300, 3, 4))
    moves *= reach / np.linalg.norm(moves.reshape(300, -1), axis=1)[:, None, None]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), model)
        jacobians = np.asarray(jax.vmap(jax.jacobian(wide))(jnp.asarray(middle + moves))).reshape(300, 5, 12)
        there = np.asarray(wide(jnp.asarray(middle)))
    largest = np.linalg.norm(jacobians, 2, axis=(1, 2)).max()
    assert largest <= end.lipschitz <= everywhere.lipschitz
    assert end.lipschitz < everywhere.lipschitz / 1.2
    assert np.linalg.norm(end.around.center - there) <= end.around.blur + 1e-14


def test_a_module_without_a_bound_around_one_input_says_so():
    class Odd(Scale):
        def bound(self, incoming, measure):
            return incoming.scale(abs(self.factor))

    model = Sequential([linear(8, 5, "a"), Odd(2.0)])
    with pytest.raises(SpaceError, match="Odd has no bound around one input"):
        spread(model, x=np.zeros(5), reach=0.1)
    assert spread(model).lipschitz >= spread(Sequential(model.layers[:1])).lipschitz
