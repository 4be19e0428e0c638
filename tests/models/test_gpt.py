"""The GPT: parity with ten published steps, scan against loop, and its bound under attack.

`fixtures/gpt_parity.npz` holds what the published code (Newhouse et al. 2025) computed for a GPT of 2 blocks, width 32
and 4 heads on a vocabulary of 17: first weights and logits, batches, losses, final weights.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.constraints import SpectralNormalize, SvdCap
from lipzoo.layers.compose import PerToken
from lipzoo.layers.stack import Stack
from lipzoo.models import GELU, GPT, Linear, Sequential
from lipzoo.models.gpt_config import GPTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.theory import msign
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Tokens, Vector
from lipzoo.theory.weight import Weight, cap_norm, exact_norm, map_weights, set_caps, weights

PUBLISHED = np.load(Path(__file__).parents[1] / "fixtures" / "gpt_parity.npz")


def published_gpt():
    config = GPTConfig(width=32, depth=2, heads=4, granularity="matrix", gelu_divisor=1.1289, zero_init=False)
    gpt = GPT(17, config, key=jax.random.key(0))
    return map_weights(lambda w: w.with_array(jnp.asarray(PUBLISHED[f"init.{w.name}"])), gpt)


def test_logits_of_the_first_weights():
    logits = jax.vmap(published_gpt())(jnp.asarray(PUBLISHED["tokens"][0, :, :-1]))
    np.testing.assert_allclose(logits, PUBLISHED["logits"], atol=2e-6)


def test_shares_are_the_published_update_norms():
    for weight in weights(published_gpt()):  # The published ones include the polynomial's value.
        np.testing.assert_allclose(PUBLISHED[f"norms.{weight.name}"], weight.share, rtol=2e-3)


def cap_rows(array):
    return array / jnp.maximum(1, jnp.sqrt(jnp.mean(array**2, axis=-2, keepdims=True)))


def by_products_with_the_matrix(matrix, rows, dtype):
    """The iteration as published. On the smaller Gram matrix (the default where it is cheaper) these momenta, which are
    ill-conditioned and moved at a learning rate of 1, end up to 0.014 away."""
    if matrix.shape[-2] > matrix.shape[-1]:
        return by_products_with_the_matrix(matrix.mT, rows, dtype).mT
    return msign.iterate(matrix / jnp.linalg.norm(matrix, axis=(-2, -1), keepdims=True), rows)


def least_root(k):
    roots = np.roots([-(k**9), 3 * k**7, -3 * k**5, 0, k - 2.0])
    return min((r.real for r in roots if abs(r.imag) < 1e-7 and r.real > 0), default=1.0)


def published_soft_cap(weight, eta):
    """One round with the published coupling, α the least positive root of the quartic (1 where there is none)."""
    factor = weight.rms_factor
    alpha = np.vectorize(least_root)(2.0 + eta * factor)[..., None, None]
    w = np.asarray(weight.array).astype(np.float64) * factor
    u = w - alpha * w @ w.swapaxes(-1, -2) @ w
    w = u + alpha * u @ u.swapaxes(-1, -2) @ u
    return weight.with_array(jnp.asarray(w / factor, jnp.float32))


CASES = [
    # case, optimizer, lr, by how much losses and weights may differ
    ("adam_none", "adamw", 0.01, 5e-5, 2e-4),
    ("muon_soft_cap", "muon", 1.0, 5e-5, 2e-4),
    # The published code normalizes to norm 1, whatever its cap, by a power iteration that is up to 2% off.
    ("muon_spec_normalize", "muon", 1.0, 1.5e-3, 5e-2),
]


@pytest.mark.parametrize(("case", "optimizer", "lr", "loss_margin", "weight_margin"), CASES)
def test_ten_steps_end_at_the_published_weights(case, optimizer, lr, loss_margin, weight_margin, monkeypatch):
    monkeypatch.setattr(msign, "msign", by_products_with_the_matrix)
    model, config = published_gpt(), OptimizerConfig(optimizer=optimizer, lr=lr)
    optimizer, factor = config.build(), config.factor(10)
    hyper = config.hyper({weight.name: weight.share for weight in weights(model)})
    state, losses, update = optimizer.init(model), [], jax.jit(optimizer.update)

    @jax.jit
    @jax.value_and_grad
    def differentiate(model, tokens):
        logits = jax.vmap(model)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    for step, tokens in enumerate(jnp.asarray(PUBLISHED["tokens"])):
        loss, gradient = differentiate(model, tokens)
        losses.append(float(loss))
        updates, state = update(gradient, state, model, hyper=hyper, clock=jnp.int32(step))
        rate = lr * float(factor(jnp.int32(step)))
        model = map_weights(lambda w, u, rate=rate: w.with_array(w.array - rate * u.array), model, updates)

        def constrain(weight, rate=rate):  # The published code caps embeddings, whatever the constraint.
            if weight.place == "embedding":
                return weight.with_array(cap_rows(weight.array))
            if case == "muon_spec_normalize":
                capped = dataclasses.replace(weight, cap=1.0)
                return weight.with_array(SpectralNormalize().apply(capped).array)
            eta = rate * PUBLISHED[f"norms.{weight.name}"]
            return weight if case == "adam_none" else published_soft_cap(weight, eta)

        model = map_weights(constrain, model)
    np.testing.assert_allclose(losses, PUBLISHED[f"{case}.losses"], atol=loss_margin)
    for weight in weights(model):
        np.testing.assert_allclose(weight.array, PUBLISHED[f"{case}.{weight.name}"], atol=weight_margin)


@pytest.mark.parametrize("granularity", ["head", "matrix"])
def test_the_scan_is_the_loop(granularity):
    gpt = GPT(11, GPTConfig(width=16, heads=2, granularity=granularity, zero_init=False), key=jax.random.key(0))
    tokens = jnp.arange(9) % 11
    x = gpt.embedding(tokens)
    for index in range(3):
        x = gpt.stack.block(index)(x)
    np.testing.assert_allclose(gpt(tokens), gpt.scale(jax.vmap(gpt.head)(x)), atol=1e-5)
    assert [w.name for w in gpt.matrices()][1:4] == ["blocks.0.q", "blocks.0.k", "blocks.0.v"]
    assert len(gpt.matrices()) == 2 + 6 * 3


def test_blocks_of_any_names_are_certified_one_by_one():
    """Norms are looked up by name, so a small first block must not stand for a large second one."""
    arrays = jnp.stack([0.1 * jnp.eye(4), 10 * jnp.eye(4)])
    stack = Stack(PerToken(Linear(Weight(arrays, "w"))))
    x, v = jnp.ones((3, 4)), jnp.ones((3, 4))
    gain = jnp.linalg.norm(jax.jvp(stack, (x,), (v,))[1]) / jnp.linalg.norm(v)
    certificate = Certificate.of(Sequential([stack]))
    assert float(gain) * (1 - 1e-6) <= certificate.lipschitz == pytest.approx(1.0)


def test_stacks_whose_blocks_would_share_a_name_have_no_certificate():
    small, large = (Stack(PerToken(Linear(Weight(s * jnp.eye(4)[None], n)))) for s, n in ((1, "blocks.w"), (9, "w")))
    with pytest.raises(ValueError, match="unique names"):
        Certificate.of(Sequential([small, large]))


def test_what_cannot_be_computed_is_infinite():
    config = GPTConfig(width=16, depth=6, heads=2, activation="relu2", residual="plain", zero_init=False)
    gpt = GPT(7, config, key=jax.random.key(0))
    gpt = map_weights(lambda w: w.with_array((0 if w.name.endswith("out") else 1e6) * w.array), gpt)
    certificate = Certificate.of(gpt)
    assert certificate.lipschitz == np.inf
    assert not np.isnan(certificate.certified.radius)


def test_a_token_depends_on_itself_and_earlier_ones_only():
    gpt = GPT(11, GPTConfig(width=16, depth=2, heads=2, zero_init=False), key=jax.random.key(0))
    x = gpt.embedding(jnp.arange(6))
    depends = np.abs(np.asarray(jax.jacrev(lambda x: gpt.stack(x).sum(-1))(x))).max(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((6, 6), bool)))


ATTACKED = {
    "unit": (1.0, {}),
    "sharp": (2.0, {"softmax_scale": 3.0, "residual_scale": 3.0}),
    "sharp, whole matrices": (2.0, {"softmax_scale": 3.0, "residual_scale": 3.0, "granularity": "matrix"}),
    "near tokens": (1.0, {"softmax_scale": 0.25, "attention_scale": 1.0, "relative_bias": 4, "activation": "maxmin"}),
    "rms norm": (1.0, {"norm": "rms", "residual": "plain", "qk_norm": True, "epsilon": 0.3, "logit_softcap": 2.0}),
    "layer norm": (1.0, {"norm": "layer", "residual": "plain", "activation": "relu2", "epsilon": 0.3}),
    "lipsformer": (1.0, {"architecture": "lipsformer", "softmax_scale": 3.0, "epsilon": 0.3}),
}


@pytest.mark.parametrize("case", ATTACKED)
def test_no_ascent_on_embeddings_and_directions_exceeds_the_certificate(case):
    cap, options = ATTACKED[case]
    config = GPTConfig(width=16, depth=2, heads=4, final_scale=2.0, zero_init=False, **options)
    gpt = GPT(7, config, key=jax.random.key(1))
    gpt = map_weights(lambda w: w.with_array(3 * w.array), gpt)
    gpt = set_caps(gpt, {w.name: 1.0 if w.place == "embedding" else cap for w in weights(gpt)}).project(SvdCap())
    certificate = Certificate.of(gpt)
    rms = lambda x: jnp.sqrt(jnp.mean(x**2, axis=-1))  # noqa: E731

    def function(x):
        x = x * jnp.minimum(1, certificate.rows[0].norm / rms(x))[:, None]
        return gpt.logits(gpt.stack(x))

    def gain(x, v):
        output, image = jax.jvp(function, (x,), (v,))
        return rms(image).max() / rms(v).max(), rms(output).max()

    @jax.jit
    def climb(x, v):
        """One step of ascent, and the gain and the size of the output before it."""
        (found, size), (gx, gv) = jax.value_and_grad(gain, argnums=(0, 1), has_aux=True)(x, v)
        move = lambda a, g: a + 0.1 * g / (rms(g).max() + 1e-9)  # noqa: E731
        return move(x, gx), move(v, gv), found, size

    best = 0.0
    for seed in range(3):
        x, v = jax.random.normal(jax.random.key(seed), (2, 6, 16))
        for _ in range(31):
            x, v, found, size = climb(x, v)
        best = max(best, float(found))
        assert float(size) <= float(certificate.certified.radius)
    assert best <= certificate.lipschitz
    assert certificate.certified.log_lipschitz <= certificate.a_priori.log_lipschitz
    assert certificate.caps_hold


def test_unit_caps_per_head_leave_only_the_final_scale():
    gpt = GPT(7, GPTConfig(width=16, depth=4, heads=2, final_scale=8.0), cap=1.0, key=jax.random.key(0))
    bound = gpt.bound(Bound.start(gpt.takes), cap_norm)
    assert 4 < float(bound.lipschitz) <= 8  # GELU/c and attention shrink tokens, so later blocks are flatter.
    assert float(gpt.bound(Bound.start(gpt.takes), exact_norm).lipschitz) == 0  # The head starts at zero.
    assert "blocks.q" in repr(gpt)


@pytest.mark.parametrize(("heads", "seed", "softmax_scale"), [(1, 0, 0.1), (4, 1, 4.0)])
def test_no_ascent_on_weights_inputs_and_directions_exceeds_the_caps(heads, seed, softmax_scale):
    """Whole blocks, weights included, with pre-activations large enough for GELU's steepest point."""
    config = GPTConfig(width=16, depth=1, heads=heads, softmax_scale=softmax_scale, residual_scale=2.0, zero_init=False)
    gpt = GPT(7, config, cap=2.0, key=jax.random.key(seed))
    rms = lambda x: jnp.sqrt(jnp.mean(x**2, axis=-1) + 1e-12)  # noqa: E731
    into_ball = lambda x: x * jnp.minimum(1, 1 / rms(x))[:, None]  # noqa: E731

    def gain(gpt, x, v):
        image = jax.jvp(lambda x: gpt.logits(gpt.stack(x)), (into_ball(x),), (v,))[1]
        return rms(image).max() / rms(v).max()

    @jax.jit
    def climb(gpt, x, v):
        """One step of ascent, and the gain before it."""
        found, grads = jax.value_and_grad(gain, argnums=(0, 1, 2))(gpt, x, v)
        move = lambda a, g: a + 0.1 * g / (jnp.sqrt(jnp.mean(g**2)) + 1e-9)  # noqa: E731
        gpt, x, v = jax.tree.map(move, (gpt, x, v), grads)
        return gpt.project(SpectralNormalize()), into_ball(x), v, found

    x, v = jax.random.normal(jax.random.key(seed), (2, 6, 16))
    gains = []
    for _ in range(61):
        gpt, x, v, found = climb(gpt, x, v)
        gains.append(float(found))
    start, best = gains[0], max(gains[1:])
    bound = gpt.stack.bound(Bound.start(Tokens(16)), cap_norm)
    bound = gpt.ends.bound(bound, cap_norm)
    assert 2 * start < best <= float(bound.lipschitz)


def test_gelu_attains_its_slope_and_no_more():
    """At √2, the steepest point of the exact form, and at that of the tanh form beside it."""
    for exact in (True, False):
        module = GELU(1.0, exact)
        slopes = jax.vmap(jax.grad(lambda x, module=module: module(x)))(jnp.linspace(1.3, 1.5, 2001))
        bound = float(module.bound(Bound.start(Vector((1,)), 2.0), cap_norm).lipschitz)
        assert bound * (1 - 1e-6) <= float(slopes.max()) <= bound * (1 + 1e-6)
