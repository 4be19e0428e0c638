"""Published formulas against the same written out by hand with NumPy, and what they have none for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.models import GPT, MLP, GPTConfig
from lipzoo.theory.geometry import ENTRIES
from lipzoo.theory.weight import map_weights
from tests.conftest import svd_norm


def make(**options):
    gpt = GPT(11, GPTConfig(width=16, depth=2, heads=2, zero_init=False, **options), key=jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return map_weights(lambda w: w.with_array(w.array + 0.1 * jax.random.normal(next(keys), w.array.shape)), gpt)


def whole(gpt, block, name):
    (weight,) = [w for w in gpt.stack.block(block).matrices() if w.name == f"blocks.{block}.{name}"]
    return np.asarray(weight.array).reshape(-1, weight.array.shape[-1])


@pytest.mark.parametrize("granularity", ["head", "matrix"])
def test_the_formula_for_lipschitz_transformers(granularity):
    gpt, s, alpha = make(granularity=granularity, softmax_scale=0.7, final_scale=3.0), 0.7, 1 / 4
    radius, constant = float(svd_norm(gpt.embedding.table.array).max()), 1.0
    for block in (1, 0):  # Walked backwards, as published.
        q, k, v, out, up, down = (svd_norm(whole(gpt, block, n)) for n in ("q", "k", "v", "out", "up", "down"))
        constant *= 1 - alpha + alpha * s * out * v * (1 + 2 * q * k * radius**2) / 3
        radius *= 1 - alpha + alpha * out * v / 3
        constant *= 1 - alpha + alpha * up * down / 1.1289
        radius *= 1 - alpha + alpha * up * down / 1.1289
    head = 3 * svd_norm(gpt.head.weight.array)
    published = Certificate.of(gpt).published
    assert published.lipschitz == pytest.approx(constant * head, rel=1e-9)
    assert published.radius == pytest.approx(radius * head, rel=1e-9)


def test_the_formula_for_lipsformer():
    tau, epsilon, n = 5.0, 0.01, 7
    gpt = make(architecture="lipsformer", softmax_scale=tau, epsilon=epsilon)
    norm = lambda block, name: np.linalg.norm(whole(gpt, block, name).astype(np.float64), 2)  # noqa: E731
    constant = np.linalg.norm(np.asarray(gpt.head.weight.array, np.float64), 2)
    for block in (0, 1):
        largest = {
            w.name.split(".", 2)[-1]: float(jnp.abs(w.array).max())
            for w in gpt.stack.block(block).matrices()
            if w.geometry == ENTRIES
        }
        cosine = 2 * n * (n - 1) * tau * norm(block, "k") + 2 * (n - 1) * tau * norm(block, "q")
        cosine = (cosine + 2 * n * norm(block, "v")) / math.sqrt(epsilon) * norm(block, "out")
        mlp = 1.1289 * norm(block, "up") * norm(block, "down")
        for part, lipschitz in (("attention", cosine), ("mlp", mlp)):
            constant *= 1 + largest[f"{part}.strength"] * 16 / 15 * largest[f"{part}.center.gain"] * lipschitz
    assert Certificate.of(gpt, window=n).published.lipschitz == pytest.approx(constant, rel=1e-5)
    assert Certificate.of(gpt).published is None


def test_networks_without_a_published_formula():
    for options in ({"norm": "rms"}, {"residual": "plain"}, {"activation": "maxmin"}, {"qk_norm": True}):
        assert Certificate.of(make(**options)).published is None
    certificate = Certificate.of(MLP(4, 4, 2, zero_init=False, key=jax.random.key(0)))
    assert certificate.published == certificate.layerwise
