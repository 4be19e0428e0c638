"""Attention: its bound against known counterexamples and gradient ascent, and what its mask lets through."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.constraints import SvdCap
from lipzoo.layers.base import Mask
from lipzoo.layers.rotary import rotate
from lipzoo.models import Attention
from lipzoo.theory.bound import Bound
from lipzoo.theory.geometry import OFFSETS
from lipzoo.theory.space import Tokens
from lipzoo.theory.weight import Weight, cap_norm, exact_norm, gram_norm, set_caps, weights


def attention(key, *, width=32, heads=4, granularity="head", softmax_scale=1.0, size=1.0, **options):
    keys = jax.random.split(key, 4)
    shape = (heads, width // heads, width) if granularity == "head" else (width, width)

    def weight(key, name, shape):
        return Weight(size * jax.random.normal(key, shape) / np.sqrt(shape[-1]), name)

    parts = [weight(k, n, shape) for k, n in zip(keys, "qkv", strict=False)]
    return Attention(*parts, weight(keys[3], "out", (width, width)), heads, softmax_scale, **options)


def token_norms(x):
    return jnp.sqrt(jnp.mean(x**2, axis=-1))


def gain(module, x, v):
    """‖Jv‖/‖v‖ for sequences measured by their largest token."""
    _, image = jax.jvp(module, (x,), (v,))
    return token_norms(image).max(-1) / token_norms(v).max(-1)


def test_the_64_head_counterexample_to_whole_matrix_norms():
    """All norms are 1 and the published constant is 1, but heads that attend to different tokens add up to 2.609."""
    heads, size, width = 64, 2, 128
    identity = Weight(jnp.eye(width), "w", cap=1.0)
    module = Attention(identity, identity, identity, identity, heads)
    x, v = np.zeros((65, width)), np.zeros((65, width))
    for j in range(heads):
        x[j, j * size], v[j, j * size + 1] = np.sqrt(width), np.sqrt(width)
    x[64, ::size] = np.sqrt(size)

    def without_rotation(x):  # The example is stated without RoPE; a rotation by zero angles stands for that.
        q = x.reshape(65, heads, size)
        scores = jnp.einsum("qhe,khe->hqk", q, q) / size
        share = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((65, 65), bool)), scores, -jnp.inf), axis=-1)
        return jnp.einsum("hqk,khe->qhe", share, q).reshape(65, width) / 3

    _, change = jax.jvp(without_rotation, (jnp.asarray(x, jnp.float32),), (jnp.asarray(v, jnp.float32),))
    measured = float(token_norms(change)[64])
    assert measured == pytest.approx(2.609, abs=0.002)
    output = float(token_norms(without_rotation(jnp.asarray(x, jnp.float32)))[64])
    assert output > 1 / 3
    for measure in (exact_norm, cap_norm):
        bound = module.bound(Bound.start(module.takes, 1.0), measure)
        assert measured <= bound.lipschitz
        assert output <= bound.radius
    assert jax.jit(gain)(module, jnp.asarray(x, jnp.float32), jnp.asarray(v, jnp.float32)) <= bound.lipschitz


ATTACKED = {
    "soft": (0.1, 1.0, {}),
    "unit": (1.0, 1.0, {}),
    "sharp": (4.0, 2.0, {}),
    "qk-norm": (2.0, 1.0, {"qk_epsilon": 0.1}),
    "cosine": (2.0, 0.5, {"qk_epsilon": 0.03, "v_epsilon": 0.3, "output_scale": 2.0}),
    "unrotated": (1.0, 1.0, {"rotary": False}),
    "sharp, unrotated": (4.0, 2.0, {"rotary": False}),
    "bias": (1.0, 1.0, {"bias": Weight(jnp.linspace(4.0, -4.0, 5).reshape(1, 5, 1), "bias", OFFSETS)}),
}
HEADS = [
    *((name, 16, "head") for name in ATTACKED),
    *((name, 4, "matrix") for name in ("sharp", "unrotated")),
]


@pytest.mark.parametrize(("name", "heads", "granularity"), HEADS)
def test_no_ascent_on_inputs_directions_and_weights_exceeds_the_bound(name, heads, granularity):
    softmax_scale, radius, options = ATTACKED[name]
    if "bias" in options:
        options = {"bias": options["bias"].with_array(jnp.tile(options["bias"].array, (heads, 1, 1)))}
    module = attention(
        jax.random.key(heads), heads=heads, granularity=granularity, softmax_scale=softmax_scale, **options
    )
    module = set_caps(module, dict.fromkeys(("q", "k", "v", "out"), 1.3)).project(SvdCap())
    x, v = (jax.random.normal(jax.random.key(seed), (4, 8, 32)) for seed in (1, 2))

    def into_ball(x):
        return x * jnp.minimum(1, radius / token_norms(x))[..., None]

    def objective(module, x, v):
        return jax.vmap(lambda x, v: gain(module, x, v))(into_ball(x), v)

    def size(module, x):
        return token_norms(jax.vmap(module)(into_ball(x))).max(-1)

    def total(module, x, v):
        gains, sizes = objective(module, x, v), size(module, x)
        return gains.sum() + sizes.sum(), (gains.max(), sizes.max())

    @jax.jit
    def climb(module, x, v):  # What is found is that of the module, inputs and directions it is given.
        grads, found = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(module, x, v)
        scale = lambda g: g / (jnp.sqrt(jnp.mean(g**2)) + 1e-9)  # noqa: E731
        move = lambda a, g: a + 0.05 * scale(g)  # noqa: E731
        moved, x, v = jax.tree.map(move, (module, x, v), grads)
        return moved.project(SvdCap()), x, v, found

    for _ in range(26):
        last = module
        module, x, v, (found, largest) = climb(module, x, v)
    module, found, largest = last, float(found), float(largest)
    exact = module.bound(Bound.start(module.takes, radius), exact_norm)
    caps = module.bound(Bound.start(module.takes, radius), cap_norm)
    assert found <= float(exact.lipschitz) * (1 + 1e-5)
    assert largest <= float(exact.radius) * (1 + 1e-5)
    assert exact.log_lipschitz <= caps.log_lipschitz
    assert exact.radius <= caps.radius


def identities(width, heads=1, **options):
    weight = Weight(jnp.eye(width), "w", cap=1.0)
    return Attention(weight, weight, weight, weight, heads, output_scale=1.0, **options)


def test_rotated_keys_change_values_and_logits_by_more_than_a_right_angle():
    """Two keys, the second turned by 180°, moved alike: 1 + s = 4, where unrotated ones reach √(1 + s²)."""
    q, scale = jnp.array([1.0, 0.0]) * np.sqrt(2), 3.0

    def attend(x, signs):
        return jax.nn.softmax(scale * (signs * x) @ q / 2) @ x

    x, v = jnp.array([[1.0, 0.0], [-1.0, 0.0]]) * np.float32(np.sqrt(2)), jnp.stack([q, q]).astype(jnp.float32)
    _, change = jax.jvp(lambda x: attend(x, jnp.array([[1.0], [-1.0]])), (x,), (v,))
    assert float(token_norms(change)) == pytest.approx(1 + scale, rel=1e-6)
    assert 1 + scale > np.sqrt(1 + scale**2)
    rotated, plain = (identities(2, softmax_scale=scale, rotary=rotary) for rotary in (True, False))
    own = scale  # What the query's own change adds.
    bounds = [float(m.bound(Bound.start(m.takes, 1.0), exact_norm).lipschitz) for m in (rotated, plain)]
    assert bounds == pytest.approx([1 + scale + own, np.sqrt(1 + scale**2) + own])


def test_the_bound_without_rotation_is_nearly_reached():
    """2000 tokens ±u and one that asks, q ⊥ u, moved by (u ± q)/√2 and u: 2.4123 of 1 + √2."""
    u, q = np.sqrt(2) * np.array([0.0, 1.0]), np.sqrt(2) * np.array([1.0, 0.0])
    signs = np.array([1.0, -1.0] * 1000)[:, None]
    x = np.vstack([signs * u, q]).astype(np.float32)
    v = np.vstack([(u + signs * q) / np.sqrt(2), u]).astype(np.float32)
    module = identities(2, rotary=False)
    _, change = jax.jvp(module, (jnp.asarray(x),), (jnp.asarray(v),))
    for measure in (exact_norm, cap_norm):
        bound = float(module.bound(Bound.start(module.takes, 1.0), measure).lipschitz)
        assert 2.4122 < float(token_norms(change)[-1]) <= bound == pytest.approx(1 + np.sqrt(2), rel=1e-9)


@pytest.mark.parametrize(("heads", "granularity"), [(1, "head"), (4, "head"), (4, "matrix")])
@pytest.mark.parametrize("softmax_scale", [0.0, 0.1, 1.0, 8.0])
def test_without_rotation_no_bound_is_larger(heads, granularity, softmax_scale):
    rotated = attention(jax.random.key(0), heads=heads, granularity=granularity, softmax_scale=softmax_scale)
    for radius in (0.1, 1.0, 3.0):
        start = Bound.start(rotated.takes, radius)
        more = rotated.bound(start, exact_norm).log_lipschitz
        less = dataclasses.replace(rotated, rotary=False).bound(start, exact_norm).log_lipschitz
        assert less <= more + 1e-12
        if softmax_scale >= 1 and radius >= 1:
            assert less < more - 1e-3


@pytest.mark.parametrize("options", [{"qk_epsilon": 0.1}, {"v_epsilon": 0.1}])
def test_normalized_heads_have_the_bound_of_rotated_ones(options):
    """The derivative of a normalization gives every token a direction of its own, as a rotation does."""
    first, second = (attention(jax.random.key(0), rotary=rotary, **options) for rotary in (True, False))
    bounds = [m.bound(Bound.start(m.takes, 1.0), exact_norm).log_lipschitz for m in (first, second)]
    assert bounds[0] == bounds[1]


def test_without_rotation_the_order_of_earlier_tokens_does_not_count():
    module = attention(jax.random.key(0), rotary=False)
    x = jax.random.normal(jax.random.key(1), (6, 32))
    turned = jnp.concatenate([x[4::-1], x[5:]])
    np.testing.assert_allclose(module(x)[-1], module(turned)[-1], atol=1e-6)
    rotated = dataclasses.replace(module, rotary=True)
    assert float(jnp.abs(rotated(x)[-1] - rotated(turned)[-1]).max()) > 1e-3


def test_unit_norm_attention_per_head_is_one_lipschitz():
    """σ_O(σ + 2sσ³r²)/3 at σ = s = r = 1."""
    module = set_caps(attention(jax.random.key(0)), dict.fromkeys(("q", "k", "v", "out"), 1.0))
    bound = module.bound(Bound.start(module.takes, 1.0), cap_norm)
    assert float(bound.lipschitz) == pytest.approx(1.0, abs=1e-12)
    assert float(bound.radius) == pytest.approx(1 / 3, abs=1e-12)
    assert bound.lipschitz >= 1


@pytest.mark.parametrize("granularity", ["head"])
def test_the_bound_inside_jit_is_the_certified_one_up_to_gram_iteration(granularity):
    module = attention(jax.random.key(3), granularity=granularity)
    exact = module.bound(Bound.start(module.takes, 1.0), exact_norm)
    start = Bound.start(module.takes, jnp.ones(()))
    value, slope = jax.jit(jax.value_and_grad(lambda m: m.bound(start, gram_norm).log_lipschitz))(module)
    assert exact.log_lipschitz <= float(value) <= exact.log_lipschitz + 0.05
    assert all(bool(jnp.isfinite(weight.array).all()) for weight in weights(slope))


def test_free_weights_have_an_infinite_a_priori_bound():
    bound = attention(jax.random.key(0)).bound(Bound.start(Tokens(32)), cap_norm)
    assert bound.lipschitz == bound.radius == np.inf


def test_a_token_depends_on_itself_and_earlier_ones_only():
    module = attention(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (6, 32))
    jacobian = jax.jacrev(lambda x: module(x).sum(-1))(x)
    depends = np.abs(np.asarray(jacobian)).max(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((6, 6), bool)))


DOCUMENTS = [0, 0, 1, 1, 1, 1]
MASKS = [
    (0, Mask(), lambda t, s: True),
    (2, Mask(), lambda t, s: t - s < 2),
    (5, Mask(window=3), lambda t, s: t - s < 3),
    (0, Mask(documents=jnp.array(DOCUMENTS)), lambda t, s: DOCUMENTS[t] == DOCUMENTS[s]),
    (2, Mask(documents=jnp.array(DOCUMENTS)), lambda t, s: t - s < 2 and DOCUMENTS[t] == DOCUMENTS[s]),
]


@pytest.mark.parametrize(("window", "mask", "allowed"), MASKS)
def test_masks_hide_what_is_far_or_of_another_document(window, mask, allowed):
    module = dataclasses.replace(attention(jax.random.key(0)), window=window)
    x = jax.random.normal(jax.random.key(1), (6, 32))
    depends = np.abs(np.asarray(jax.jacrev(lambda x: module.masked(x, mask).sum(-1))(x))).max(-1) > 0
    np.testing.assert_array_equal(depends, [[s <= t and allowed(t, s) for s in range(6)] for t in range(6)])


def test_heads_that_cannot_rotate_are_refused():
    with pytest.raises(ValueError, match="16 heads need a width divisible by 32, got 16"):
        attention(jax.random.key(0), width=16, heads=16)


def test_rotation_keeps_norms_and_sees_only_distances():
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 1, 8))
    np.testing.assert_allclose(token_norms(rotate(x)), token_norms(x), rtol=1e-6)
    near, far = (jnp.einsum("the,she->ts", rotate(x, first), rotate(y, first)) for first in (0, 40))
    np.testing.assert_allclose(near, far, atol=1e-4)


def test_both_granularities_compute_the_same_function():
    per_head = attention(jax.random.key(0))
    whole = [w.with_array(w.array.reshape(32, 32)) for w in (per_head.q, per_head.k, per_head.v)]
    matrix = Attention(*whole, per_head.out, 4)
    x = jax.random.normal(jax.random.key(1), (7, 32))
    np.testing.assert_allclose(per_head(x), matrix(x), atol=1e-6)
    ours, theirs = (m.bound(Bound.start(m.takes, 1.0), exact_norm).log_lipschitz for m in (per_head, matrix))
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_impossible_attention_is_refused():
    module = attention(jax.random.key(0))
    with pytest.raises(ValueError, match="softmax scale must be at least 0"):
        attention(jax.random.key(0), softmax_scale=-0.1)
    with pytest.raises(ValueError, match="q, k and v of 4 heads must have one of the shapes"):
        Attention(*(Weight(jnp.ones((1, 32, 32)), name) for name in "qkv"), module.out, 4)
    with pytest.raises(ValueError, match="need a width divisible by 24"):
        Attention(module.q, module.k, module.v, module.out, 12)


def test_bounds_of_tiny_and_huge_norms_neither_vanish_nor_break():
    for size in (1e-160, 1e150):
        weight = Weight(jnp.eye(4), "w", cap=size)
        bound = Attention(weight, weight, weight, weight, 2).bound(Bound.start(Tokens(4)), cap_norm)
        assert bound.lipschitz > 0
        assert not np.isnan(bound.lipschitz)
    zero = Weight(jnp.zeros((4, 4)), "w")
    module = Attention(zero, zero, zero, zero, 2)
    assert module.bound(Bound.start(module.takes, np.inf), exact_norm).radius == 0
    start = Bound.start(module.takes, jnp.ones(()))
    gradient = jax.jit(jax.grad(lambda m: m.bound(start, gram_norm).radius))(module)
    assert all(bool(jnp.isfinite(w.array).all()) for w in weights(gradient))
