"""LipsFormer (Qi et al. 2023, arXiv 2304.09856): a transformer whose parts are Lipschitz without caps on its weights.

LayerNorm becomes CenterNorm, dot products become cosines, residual branches are weighted by learned strengths, and
matrices start with σ₁ = 1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.layers.activation import GELU
from lipzoo.layers.attention import Attention
from lipzoo.layers.base import AbstractModule, check_axes
from lipzoo.layers.compose import AbstractResidual, PerToken, Sequential
from lipzoo.layers.init import BELOW_CAP, Init, fresh
from lipzoo.layers.linear import Affine, Linear, gain_error
from lipzoo.layers.normalization import Center
from lipzoo.theory.balls import Balls
from lipzoo.theory.bound import Bound, weighted_sum
from lipzoo.theory.geometry import COLUMN, ENTRIES
from lipzoo.theory.numbers import namespace
from lipzoo.theory.weight import Measure, Weight

FIRST_STRENGTH = 0.1
"""Residual strengths at the start."""


class WeightedResidual(AbstractResidual):
    """x + α ⊙ f(x) with learned α, held as 1×1 matrices of shape (d, 1, 1)."""

    deviates = True
    branch: AbstractModule
    strength: Weight

    def combine(self, x: Float[Array, "time d"], image: Float[Array, "time d"]) -> Float[Array, "time d"]:
        return x + image * self.strength.array[None, :, 0, 0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r + max|α|·r_f, L + max|α|·L_f). What runs is off by max|α̂ - α|·r_f, and rounds the product, and the sum."""
        check_axes(self.strength, "a strength", "(size, 1, 1)")
        self.strength.geometry.check_multiplied(self.strength.name)
        incoming.tokens("WeightedResidual", self.strength.array.shape[0])
        strengths = measure(self.strength)
        image = self.branch.bound(incoming, measure)
        branch = image.scale(namespace(strengths).max(strengths))
        branch = branch.off(lambda runs: gain_error(runs, self.strength, image.radius, measure))
        return weighted_sum((1.0, 1.0), (incoming, branch))

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """The sum of both changes."""
        image, strengths = self.branch.near(incoming, measure), np.asarray(self.strength.array, np.float64)[:, 0, 0]
        center = incoming.center + image.center * strengths
        return incoming.moved(center, incoming.radius + abs(strengths).max() * image.radius)


def center_norm(width: int, name: str, cap: float, share: float) -> Sequential:
    """γ ⊙ d/(d-1)·(x - mean x) + β."""
    gain = Weight(jnp.full((width, 1, 1), min(1.0, cap) * BELOW_CAP, jnp.float32), f"{name}.gain", ENTRIES, cap, share)
    bias = Weight(jnp.zeros((width, 1), jnp.float32), f"{name}.bias", COLUMN, cap, share)
    return Sequential([Center(width / (width - 1)), Affine(gain, bias)])


def lipsformer_block(
    width: int,
    heads: int,
    *,
    head_shape: tuple[int, ...],
    temperature: float,
    epsilon: float,
    window: int,
    zero_init: bool,
    cap: float,
    share: float,
    key: PRNGKeyArray,
) -> Sequential:
    """x ← x + α₁ ⊙ SCSA(CN(x)), x ← x + α₂ ⊙ FFN(CN(x)).

    Scaled cosine similarity attention is softmax(τ q̂k̂ᵀ)v̂ with x̂ = x/√(‖x‖₂² + ε). In RMS norms that is x/√(mean x² +
    ε/d_h) divided by √d_h, so it is `Attention` with normalized q, k, v, s = τ, and an output scale of 1/√d_h.
    """
    keys = jax.random.split(key, 6)
    last: Init = "zero" if zero_init else "spectral"
    size = width // heads

    def matrix(index: int, name: str, shape: tuple[int, ...], init: Init = "spectral") -> Weight:
        return fresh(keys[index], shape, name=f"blocks.{name}", cap=cap, share=share, init=init)

    def residual(branch: AbstractModule, name: str) -> WeightedResidual:
        normed = Sequential([center_norm(width, f"blocks.{name}.center", cap, share), branch])
        first = jnp.full((width, 1, 1), min(FIRST_STRENGTH, cap), jnp.float32)
        return WeightedResidual(normed, Weight(first, f"blocks.{name}.strength", ENTRIES, cap, share))

    q, k, v = (matrix(index, name, head_shape) for index, name in enumerate("qkv"))
    attention = Attention(
        q,
        k,
        v,
        matrix(3, "out", (width, width), last),
        heads,
        softmax_scale=temperature,
        output_scale=1 / math.sqrt(size),
        qk_epsilon=epsilon / size,
        v_epsilon=epsilon / size,
        window=window,
    )
    up = Linear(matrix(4, "up", (4 * width, width)))
    down = Linear(matrix(5, "down", (width, 4 * width), last))
    mlp = PerToken(Sequential([up, GELU(1.0), down]))
    return Sequential([residual(attention, "attention"), residual(mlp, "mlp")])
