"""Deviation: what runs, in every format and with other weights, is never further from what is meant than is proved."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.deviation import Beside, stored
from lipzoo.certify.measured import ExactNorms
from lipzoo.layers.activation import GELU, Identity, ReLU, SquaredReLU, Tanh
from lipzoo.layers.attention import Attention
from lipzoo.layers.base import silent
from lipzoo.layers.compose import ConvexResidual, PerToken, Residual, Sequential
from lipzoo.layers.embedding import Embedding
from lipzoo.layers.linear import Affine, Flatten, Linear, Scale
from lipzoo.layers.normalization import Center, RMSNorm, layer_norm
from lipzoo.layers.sorting import GroupSort
from lipzoo.models import GPT, MLP, GPTConfig
from lipzoo.models.lipsformer import WeightedResidual
from lipzoo.theory.bound import Bound, weighted_sum
from lipzoo.theory.distances import absolute_norm, product_norm
from lipzoo.theory.functions import arithmetic
from lipzoo.theory.geometry import COLUMN, ENTRIES, OFFSETS, ROWS
from lipzoo.theory.runs import Runs
from lipzoo.theory.space import Symbols, Tokens, Vector
from lipzoo.theory.weight import Weight, exact_norm, map_weights
from tests.conftest import svd_norm


def weight(*shape, name, seed=0, geometry=None, size=1.0):
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(size)
    return Weight(jnp.asarray(array), name, **({"geometry": geometry} if geometry else {}))


def linear(out, size, seed=0, name="w", bias=True):
    column = weight(out, 1, name=f"{name}.b", seed=seed + 1, geometry=COLUMN) if bias else None
    return Linear(weight(out, size, name=name, seed=seed), column)


def attention(*, heads=2, scale=1.0, bias=False, **options):
    shape = (heads, 8 // heads, 8)
    parts = [weight(*shape, name=name, seed=seed, size=0.3) for seed, name in enumerate("qkv")]
    offset = weight(heads, 3, 1, name="position", seed=9, geometry=OFFSETS, size=2.0) if bias else None
    return Attention(*parts, weight(8, 8, name="out", seed=4, size=0.3), heads, scale, 0.7, offset, **options)


GAINS = weight(6, 1, 1, name="gain", seed=3, geometry=ENTRIES)
VECTORS = {
    "linear": linear(5, 6),
    "long sum": Sequential([linear(6, 6), linear(700, 6, 3, "u"), linear(6, 700, 5, "v")]),
    "scale": Scale(-1.7),
    "affine": Affine(GAINS, weight(6, 1, name="shift", seed=8, geometry=COLUMN)),
    "flatten": Flatten(),
    "relu": ReLU(),
    "gelu": GELU(),
    "gelu by erf": GELU(1.0, exact=True),
    "tanh": Tanh(0.7),
    "identity": Identity(),
    "squared relu": SquaredReLU(6),
    "maxmin": GroupSort(),
    "groupsort": GroupSort(3),
    "rms norm": RMSNorm(1e-3),
    "center": Center(1.2),
    "layer norm": layer_norm(1e-2),
    "convex residual": ConvexResidual(linear(6, 6), 0.3),
    "residual": Residual(Sequential([linear(6, 6), GELU()])),
    "mlp": MLP(6, 16, 4, depth=4, residual=0.3, activation="gelu", bias=True, zero_init=False, key=jax.random.key(1)),
}
STRENGTH = weight(8, 1, 1, name="strength", seed=6, geometry=ENTRIES)
SEQUENCES = {
    "attention": attention(),
    "sharp": attention(scale=6.0, rotary=False),
    "with offsets": attention(scale=0.5, bias=True, rotary=False),
    "normalized": attention(qk_epsilon=1e-3, v_epsilon=1e-2, scale=3.0),
    "in a window": attention(heads=1, window=3),
    "of LipsFormer": WeightedResidual(Sequential([Center(), attention()]), STRENGTH),
    "per token": PerToken(Sequential([linear(12, 8), GELU(), linear(8, 12, 5, "v")])),
    "rms norm": RMSNorm(1e-3),
}
GPTS = {
    "default": GPTConfig(width=16, heads=4, depth=2, zero_init=False),
    "usual": GPTConfig(width=16, heads=2, depth=2, zero_init=False, norm="layer", residual="plain", qk_norm=True),
    "lipsformer": GPTConfig(width=16, heads=2, depth=2, zero_init=False, architecture="lipsformer", softmax_scale=4.0),
    "squares": GPTConfig(width=16, heads=2, depth=1, zero_init=False, activation="relu2", logit_softcap=3.0),
}
TIME = 24


@functools.cache
def case(name):
    """A module, the space of its inputs, and inputs of many sizes."""
    rng = np.random.default_rng(7)
    if name in GPTS:
        model = GPT(11, GPTS[name], key=jax.random.key(2))
        return model, Symbols(11), jnp.asarray(rng.integers(0, 11, size=(40, TIME)), jnp.int32)
    shape = (6,) if name in VECTORS else (TIME, 8)
    x = rng.normal(size=(200, *shape)) * np.geomspace(1e-3, 3.0, 200).reshape(-1, *[1] * len(shape))
    x[:20] = np.sign(x[:20])
    x[20] = 0
    space = Vector((6,)) if name in VECTORS else Tokens(8)
    return {**VECTORS, **{f"{n}, tokens": m for n, m in SEQUENCES.items()}}[name], space, jnp.asarray(x, jnp.float32)


CASES = [*VECTORS, *(f"{name}, tokens" for name in SEQUENCES), *GPTS]


def plain_attention(q, k, v, *, scale, first, window, documents, bias, causal=True):
    """Softmax attention in the format of q: that of JAX is in float32."""
    distance = jnp.arange(len(q))[:, None] - jnp.arange(len(k))[None, :]
    logits = scale * jnp.einsum("qhd,khd->hqk", q, k)
    if bias is not None:
        logits = logits + bias[:, jnp.clip(distance, 0, bias.shape[1] - 1)]
    seen = ((distance >= 0) & (distance < (window or len(k)))) | (not causal)
    weights = jax.nn.softmax(jnp.where(seen[None], logits, -jnp.inf), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights, v)


def plain_rotation(x, first, room):
    """By the angles that are meant."""
    half = x.shape[-1] // 2
    angle = jnp.outer(jnp.arange(len(x), dtype=x.dtype), 10_000.0 ** (-jnp.arange(half, dtype=x.dtype) / half))[:, None]
    cos, sin, left, right = jnp.cos(angle), jnp.sin(angle), x[..., :half], x[..., half:]
    return jnp.concatenate([cos * left + sin * right, cos * right - sin * left], axis=-1)


@jax.jit
def many(model, x):
    return jax.vmap(model)(x)


@jax.jit
def many_in_float64(model, x):
    return jax.vmap(model)(x)


def exactly(model, x):
    """In float64, of which no part is left to float32."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("lipzoo.layers.attention.attend", plain_attention)
        patch.setattr("lipzoo.layers.attention.rotate", plain_rotation)
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), model)
        x = x if x.dtype == jnp.int32 else jnp.asarray(np.asarray(x, np.float64))
        return np.asarray(many_in_float64(wide, x))


@functools.cache
def meant(name):
    """What the model of a case gives in float64."""
    model, _, x = case(name)
    return exactly(model, x)


def running(model, x, dtype):
    """As networks run in a format; factors of products rounded as on tensor cores for tf32."""
    low = jnp.dtype("bfloat16" if dtype.startswith(("bf", "float8")) else "float32")
    model = jax.tree.map(lambda a: np.asarray(a).astype(low), model)  # By NumPy, which compiles nothing.
    x = x if x.dtype == jnp.int32 else np.asarray(x).astype(low)
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(many(model, jnp.asarray(x))).astype(np.float64)


def proved(model, other, space, radius, runs_in):
    beside = Beside(jax.tree.map(np.asarray, model), jax.tree.map(np.asarray, other))
    runs = beside.runs(None if runs_in is None else arithmetic(runs_in), TIME)
    return beside.first.bound(Bound.start(space, radius, runs), exact_norm)


def sizes(x):
    return float(np.sqrt((np.asarray(x, np.float64) ** 2).mean(-1)).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("name", CASES)
def test_what_runs_is_no_further_than_proved(name, dtype):
    model, space, x = case(name)
    low = stored(jax.tree.map(np.asarray, model), dtype)
    radius = 1.0 if name in GPTS else sizes(x) * (1 + 1e-6)
    bound = proved(model, low, space, radius, dtype)
    true, ran = meant(name), running(low, x, dtype)
    found = sizes(ran - true)
    assert found <= bound.deviation
    assert max(sizes(ran), sizes(true)) <= bound.radius
    assert bound.deviation < math.inf
    if name in VECTORS and dtype == "float32":  # A bound of nothing in particular would not be one.
        assert bound.deviation <= 1e-3 * max(1.0, float(bound.radius))


def climb(model, low, x, dtype, radius, rounds=12):
    """The largest deviation that a population of inputs comes to, of which the best are changed: by noise of many
    sizes, by single units in the last place, by signs."""
    rng, keep, found = np.random.default_rng(0), 20, []
    x = np.asarray(x)
    for _ in range(rounds):
        off = running(low, jnp.asarray(x), dtype) - exactly(model, jnp.asarray(x))
        score = np.sqrt((off**2).mean(-1)).reshape(len(x), -1).max(1)
        found.append(score.max())
        best = x[np.argsort(-score)[:keep]]
        x = best[rng.integers(0, keep, size=len(x))]
        if x.dtype == np.int32:
            rate = np.geomspace(0.5 / x.shape[1], 0.9, len(x))[:, None]  # From hardly a token to nearly all.
            changed = rng.uniform(size=x.shape) < rate
            x = np.where(changed, rng.integers(0, 11, size=x.shape), x).astype(np.int32)
        else:
            size = np.geomspace(1e-8, 1.0, len(x)).reshape(-1, *[1] * (x.ndim - 1))
            x = x * (1 + size * rng.normal(size=x.shape)) * rng.choice([1.0, 1.0, 1.0, -1.0], size=x.shape)
            x = (x / np.maximum(np.sqrt((x**2).mean(-1, keepdims=True)) / radius, 1)).astype(np.float32)
        x[:keep] = best
    return found


@pytest.mark.parametrize(
    "name", ["long sum", "gelu", "mlp", "layer norm", "attention, tokens", "normalized, tokens", "default", "squares"]
)
def test_a_search_for_the_worst_rounding_finds_no_more(name):
    model, space, x = case(name)
    radius = 1.0 if name in GPTS else sizes(x)
    for dtype in ("float32", "bfloat16"):
        low = stored(jax.tree.map(np.asarray, model), dtype)
        found = climb(model, low, x, dtype, radius)
        assert found[0] < max(found) <= proved(model, low, space, radius * (1 + 1e-5), dtype).deviation


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_that_all_round_the_same_way_do_not_go_beyond_it(dtype):
    """Rows of one number, added up again and again: for some numbers nearly every sum is rounded in one direction."""
    rng, ratios = np.random.default_rng(0), []
    for value in 1 + rng.uniform(size=12):
        model = Sequential([Linear(Weight(jnp.full((2, 4096), value / 4096, jnp.float32), "w"))])
        low = stored(jax.tree.map(np.asarray, model), dtype)
        x = jnp.asarray(np.repeat(rng.uniform(0.5, 1, size=(20, 1)), 4096, axis=1), jnp.float32)
        found = sizes(running(low, x, dtype) - exactly(model, x))
        ratios.append(found / proved(model, low, Vector((4096,)), 1.0, dtype).deviation)
    assert 0 < max(ratios) <= 1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0])
def test_other_weights_take_it_no_further_than_proved(name, size):
    """In exact arithmetic: two checkpoints."""
    model, space, x = case(name)
    rng = np.random.default_rng(5)
    other = map_weights(
        lambda w: w.with_array(np.asarray(w.array) + (rng.normal(size=w.array.shape) * size).astype(np.float32)), model
    )
    radius = 1.0 if name in GPTS else sizes(x) * (1 + 1e-6)
    bound = proved(model, other, space, radius, None)
    found = sizes(exactly(other, x) - meant(name))
    assert found <= bound.deviation * (1 + 1e-12) + 1e-14
    same = proved(model, model, space, radius, None)
    assert same.deviation == 0
    assert (
        same.log_lipschitz
        == jax.tree.map(np.asarray, model).bound(Bound.start(space, radius), exact_norm).log_lipschitz
    )


@pytest.mark.parametrize("name", ["linear", "long sum", "mlp", "attention, tokens", "normalized, tokens"])
def test_the_search_for_the_worst_change_of_weights_finds_no_more(name):
    """Gradient ascent on weights within a ball, and on the input."""
    model, space, x = case(name)
    beside = map_weights(lambda w: w.with_array(jnp.zeros_like(w.array)), model)
    radius = 1.5
    size = 0.05

    def moved(change, x):
        scaled = map_weights(
            lambda w, c: w.with_array(w.array + size * c.array / jnp.maximum(jnp.linalg.norm(c.array), 1e-9)),
            model,
            change,
        )
        x = x * radius / jnp.maximum(jnp.sqrt(jnp.mean(x**2, -1).max()), 1e-9)
        return jnp.mean((scaled(x) - model(x)) ** 2, -1).max(), (scaled, x)

    best, other, x = 0.0, beside, x[150]
    change = map_weights(lambda w: w.with_array(jax.random.normal(jax.random.key(len(w.name)), w.array.shape)), beside)
    climb = jax.jit(jax.value_and_grad(moved, (0, 1), has_aux=True))
    for _ in range(150):
        (value, (scaled, at)), (slope, steep) = climb(change, x)
        if float(value) > best:
            best, other = float(value), scaled
            assert sizes(at) <= radius * (1 + 1e-5)
        steps = jax.tree.map(lambda g: 0.1 * g / jnp.maximum(jnp.linalg.norm(g), 1e-12), slope)
        change = jax.tree.map(lambda c, s: c / jnp.maximum(jnp.linalg.norm(c), 1e-9) + s, change, steps)
        x = at + 0.3 * steep / jnp.maximum(jnp.linalg.norm(steep), 1e-12)
    bound = proved(model, other, space, radius * (1 + 1e-4), None)
    assert 0 < math.sqrt(best) <= bound.deviation * (1 + 1e-3)
    assert bound.deviation <= 60 * math.sqrt(best)


@pytest.mark.parametrize("order", ["as they are", "sorted", "positive first", "alternating sizes"])
def test_sums_in_any_order_stay_within_what_is_proved(order):
    """Rounded after every product and every sum, one after the other."""
    rng = np.random.default_rng(1)
    W, x = rng.normal(size=(7, 4000)).astype(np.float32), rng.uniform(0, 1, size=4000).astype(np.float32)
    products = W * x
    keys = {"as they are": None, "sorted": products, "positive first": -np.sign(products), "alternating sizes": abs(W)}
    key = keys[order]
    if key is not None:
        products = np.take_along_axis(products, np.argsort(key, axis=1, kind="stable"), axis=1)
    ran = np.add.accumulate(products, axis=1, dtype=np.float32)[:, -1].astype(np.float64)
    off = sizes(ran - W.astype(np.float64) @ x.astype(np.float64))
    model = Linear(Weight(jnp.asarray(W), "w"))
    assert off <= proved(model, model, Vector((4000,)), sizes(x), "float32").deviation


def test_factors_rounded_as_on_tensor_cores_stay_within_what_is_proved():
    def short(x):  # 11 bits, to nearest.
        bits = x.view(np.uint32)
        return ((bits + 0x0FFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)

    rng = np.random.default_rng(1)
    W, x = rng.normal(size=(7, 300)).astype(np.float32), rng.uniform(0, 1, size=300).astype(np.float32)
    off = sizes((short(W) @ short(x)).astype(np.float64) - W.astype(np.float64) @ x.astype(np.float64))
    model = Linear(Weight(jnp.asarray(W), "w"))
    exact, tensor = (proved(model, model, Vector((300,)), sizes(x), name).deviation for name in ("float32", "tf32"))
    assert exact < off <= tensor


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 4, 7), (1, 1), (40, 3), (3, 0 + 40)])
@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e150])
def test_norms_of_differences_and_of_absolute_values_are_above_the_svd(shape, scale):
    matrix = np.random.default_rng(3).normal(size=shape) * scale
    for found, true in ((product_norm(matrix), matrix), (absolute_norm(matrix), abs(matrix))):
        exact = np.linalg.svd(true / scale, compute_uv=False)[..., 0] * scale
        assert (exact * (1 - 1e-15) <= found).all()
        assert (found <= exact * (1 + 1e-4)).all()


def test_nothing_is_off_where_nothing_differs():
    assert product_norm(np.zeros((3, 4))) == 0
    assert absolute_norm(np.zeros((3, 4))) == 0
    zeros = np.diag([1.0, 0.0, 1e-200])
    assert 1 <= absolute_norm(zeros) <= 1 + 1e-9


def test_models_of_two_architectures_are_refused():
    with pytest.raises(ValueError, match="two architectures"):
        Beside(linear(3, 4), linear(3, 5))


def test_parts_of_weights_are_found_in_the_other_model():
    first, second = (jax.tree.map(np.asarray, GPT(11, GPTS["default"], key=jax.random.key(k))) for k in (1, 2))
    beside = Beside(first, second)
    for index, (one, other) in enumerate(zip(beside.first.matrices(), second.matrices(), strict=True)):
        np.testing.assert_array_equal(beside.part(one), other.array, err_msg=str(index))
    block, other = beside.first.stack.block(1), second.stack.block(1)
    columns = [b.layers[0].branch._columns() for b in (block, other)]
    np.testing.assert_array_equal(beside.part(columns[0]), columns[1].array)
    with pytest.raises(ValueError, match="no part"):
        beside.part(dataclasses.replace(columns[0], array=np.ones((2, 2), np.float32)))


def test_sums_of_branches_of_zero_weight_and_infinite_norms_are_no_numbers_less():
    runs = Runs(arithmetic("float32"))
    start = Bound.start(Vector((4,)), 1.0, runs)
    big = start.scale(1e300).scale(1e300)
    assert big.off(lambda runs: runs.rounded(1, big.radius)).deviation == math.inf
    assert weighted_sum((1.0, 0.0), (start, start)).deviation < 1e-6


def test_norms_are_those_of_the_model_itself():
    """A part is known by its memory; the SVD knows nothing of that."""
    model, other = (jax.tree.map(np.asarray, linear(5, 6, seed)) for seed in (0, 3))
    beside, norms = Beside(model, other), ExactNorms()
    difference = np.asarray(other.weight.array, np.float64) - np.asarray(model.weight.array, np.float64)
    expected = svd_norm(difference)
    assert expected <= beside.difference(beside.first.weight) <= expected * (1 + 1e-6)
    assert norms(beside.first.weight) > 0


def plain(matrix, name="w"):
    return Linear(Weight(jnp.asarray(matrix, jnp.float32), name))


def keys(gain, scale=1.0):
    eye = np.eye(4, dtype=np.float32)
    matrices = [Weight(jnp.asarray(m[None]), n) for m, n in ((gain * eye, "q"), (gain * eye, "k"), (eye, "v"))]
    return Attention(*matrices, Weight(jnp.asarray(eye), "out"), 1, scale, 1.0)


BIG = np.array([[3e38, -3e38], [3e38, -3e38]])
OVERFLOWING = {
    "scores": (keys(np.float32(1e20)), Tokens(4), 1.0),
    "scores by their scale": (keys(np.float32(2.0**55), 2.0**30), Tokens(4), 1.0),
    "a scale": (keys(np.float32(1e-30), 1e40), Tokens(4), 1.0),
    "before a normalization": (Sequential([plain(BIG), RMSNorm()]), Vector((2,)), 10.0),
    "squares": (Sequential([SquaredReLU(2), SquaredReLU(2), RMSNorm()]), Vector((2,)), 1e17),
    "a branch of weight 0": (ConvexResidual(plain(BIG), 0.0), Vector((2,)), 10.0),
    "times 0": (Sequential([Scale(1e30), Scale(1e30), Scale(0.0)]), Vector((2,)), 1.0),
    "a factor": (Scale(1e39), Vector((2,)), 1e-30),
    "a centre's factor": (Center(1e39), Vector((2,)), 1e-30),
    "a small limit": (Tanh(1e-40), Vector((2,)), 2.0**40),
    "a limit": (Tanh(1e39), Vector((2,)), 2.0**40),
    "a limit without an inverse": (Tanh(2.5e38), Vector((2,)), 2.0**40),
    "a small divisor": (GELU(1e-40), Vector((2,)), 1e-30),
    "an epsilon": (RMSNorm(1e39), Vector((2,)), 1.0),
    "a divisor without an inverse": (GELU(2.5e38), Vector((2,)), 2.0**58),
}


@pytest.mark.parametrize("name", OVERFLOWING)
def test_of_what_may_overflow_nothing_is_proved_whatever_comes_after(name):
    """In each of these what runs is infinite, no number, or 0 where it should not be."""
    model, space, radius = OVERFLOWING[name]
    assert proved(model, model, space, radius, "float32").deviation == math.inf


@pytest.mark.parametrize(
    "model",
    [GELU(0.01), GELU(1e-20), GELU(0.01, exact=True), Center(1e-3), Center(0.05), ReLU(), GroupSort(), GroupSort(3)],
    ids=str,
)
@pytest.mark.parametrize("size", [1e-36, 1e-37, 1e-38, 1e-39, 1e-44])
def test_what_vanishes_is_counted(model, size):
    x = jnp.asarray(size * np.array([[1, -1, 0.1, 5, -3, 1], [1, 1, -1, -1, 1, -1], [1, 1, 1, 1, 1, 1]]), jnp.float32)
    off = np.sqrt(((running(model, x, "float32") - exactly(model, x)) ** 2).mean(-1)).max()
    assert off <= proved(model, model, Vector((6,)), sizes(x) + 1e-45, "float32").deviation


def test_formats_that_differ_are_refused_and_weights_in_one_place_told_apart():
    first = Sequential([plain(np.eye(2), "a"), plain(np.eye(2), "b")])
    shared = dataclasses.replace(first.layers[1].weight, array=first.layers[0].weight.array)
    first = Sequential([first.layers[0], Linear(shared)])
    second = Sequential([plain(np.eye(2), "a"), plain(2 * np.eye(2), "b")])
    assert proved(first, second, Vector((2,)), 1.0, None).deviation >= 1
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), first)
    with pytest.raises(ValueError, match="holds bfloat16, and float32 in the other"):
        Beside(half, second)


def test_embedded_tokens_that_are_no_rows_are_rounded():
    table = Weight(jnp.ones((3, 4, 1), jnp.float32), "table", ROWS)
    bound = proved(Embedding(table), Embedding(table), Symbols(3), 1.0, "bfloat16")
    assert bound.deviation >= 2.0**-8


def test_of_sequences_it_must_be_known_how_long_they_are():
    gpt = GPT(11, GPTS["default"], key=jax.random.key(2))
    with pytest.raises(ValueError, match="give window"):
        Certificate.of(gpt, arithmetic=arithmetic("float32"))
    assert Certificate.of(gpt, window=TIME, arithmetic=arithmetic("float32")).running.deviation < 1e-3


class Quiet(Linear):
    """Runs otherwise than a linear map does, and says no more than its bound."""

    def __call__(self, x):
        return Linear.__call__(self, x) * jnp.float32(1 + 1e-3) / jnp.float32(1 + 1e-3)


def test_a_module_that_does_not_say_how_far_it_is_off_has_no_deviation():
    """What is inherited does not count where a class computes otherwise."""
    layer = linear(4, 4)
    model = Sequential([Quiet(layer.weight, layer.bias), ReLU()])
    assert silent(model) == ["Quiet"]
    assert silent(Sequential([layer, ReLU(), MLP(4, 4, 2, depth=2, key=jax.random.key(0))])) == []
    assert "is not covered" in Certificate.of(model).statement
    with pytest.raises(ValueError, match="Quiet does not say how far"):
        Certificate.of(model, arithmetic=arithmetic("float32"))
    with pytest.raises(ValueError, match="Quiet does not say how far"):
        Beside(model, model)


@pytest.mark.parametrize("name", GPTS)
def test_all_models_say_how_far_they_are_off(name):
    assert silent(GPT(11, GPTS[name], key=jax.random.key(2))) == []
