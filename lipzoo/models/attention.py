"""Causal multi-head attention whose bound is counted head by head."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.bound import Bound, Scalar, namespace, round_up
from lipzoo.models.layers import AbstractModule
from lipzoo.weight import Measure, Weight

ROTARY_BASE = 10_000.0


def rotate(x: Float[Array, "*batch time size"], first: int | Array = 0) -> Float[Array, "*batch time size"]:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    Turns the pair (xᵢ, xᵢ₊ₛ), s = size/2, of the token at position t by the angle t·10000^(-i/s): a rotation of every
    head's space, which changes no norm and no bound. `first` is the position of the first token.
    """
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.outer((first + jnp.arange(x.shape[-2])).astype(jnp.float32), frequency)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    shape = (1,) * (x.ndim - 2) + cos.shape
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([cos * left + sin * right, cos * right - sin * left], axis=-1)


class Attention(AbstractModule):
    """x ↦ c·W_O concatᵢ softmax(s·qᵢkᵢᵀ/d_h) vᵢ, causal; qᵢ = rotate(W_Q,i x), kᵢ = rotate(W_K,i x), vᵢ = W_V,i x.

    The logits are divided by the heads' width d_h, not by its root: then |qᵀk|/d_h is at most the product of RMS norms.

    **Attributes:**

    - `q`, `k`, `v`: arrays of shape (heads, d_h, d), each head a matrix of its own (granularity `head`), or (d, d), one
      matrix (granularity `matrix`). Caps, orthogonalization and shares follow that choice.
    - `out`: W_O, of shape (d, d).
    - `softmax_scale`: s ≥ 0. `output_scale`: c.
    """

    q: Weight
    k: Weight
    v: Weight
    out: Weight
    heads: int = eqx.field(static=True)
    softmax_scale: float = eqx.field(static=True, default=1.0)
    output_scale: float = eqx.field(static=True, default=1 / 3)

    def __check_init__(self) -> None:
        width = self.out.array.shape[-1]
        if width % (2 * self.heads):
            raise ValueError(f"{self.heads} heads need a width divisible by {2 * self.heads}, got {width}")

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time d"]:
        q, k, v = (jnp.einsum("hed,td->hte", self._split(weight).array, x) for weight in (self.q, self.k, self.v))
        q, k = rotate(q), rotate(k)
        scores = jnp.einsum("hqe,hke->hqk", q, k) * (self.softmax_scale / q.shape[-1])
        time = x.shape[0]
        causal = jnp.tril(jnp.ones((1, time, time), bool))
        share = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf).astype(jnp.float32), axis=-1).astype(x.dtype)
        joined = jnp.einsum("hqk,hke->qhe", share, v).reshape(time, -1)
        return self.output_scale * (joined @ self.out.array.mT)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The smallest of the valid forms, for sequences measured by their largest token.

        With Q_i, K_i, V_i the heads' RMS→RMS norms, every token of norm at most r, and any mask:

        1. Rows of a softmax are positive and sum to one, so within a head ‖AΔv‖ ≤ max‖Δv‖ and ‖Av‖ ≤ V_i r.
        2. The ℓ₁ norm of a row of ΔA is at most the largest |Δs_j|, and |Δs| ≤ s(‖Δq‖‖k‖ + ‖q‖‖Δk‖) ≤ 2sQ_iK_i r‖Δx‖.
        3. Heads attend to different tokens, so the joined norm² is the mean of the heads' norms², bounded one by one:
           L (a) is √mean_i (V_i(1 + 2sQ_iK_i r²))².
        4. Or with Q = ‖W_Q‖ for all heads together: ‖Δq‖ ≤ Q‖Δx‖ and ‖q‖ ≤ Q r for the one token that asks, hence
           L (b) is √mean V_i² + 2s r² Q max K_iV_i.

        W_O takes zᵢ per head to at most ‖W_O‖√mean zᵢ², and to at most Σ‖W_O,i‖zᵢ with its column blocks.
        """
        q, k, v = (measure(self._split(weight)) for weight in (self.q, self.k, self.v))
        xp = namespace(incoming.radius, v)
        with np.errstate(over="ignore", invalid="ignore"):
            slope = 2 * self.softmax_scale * incoming.radius**2
            by_head = self._through(v * (1 + slope * q * k), measure)
            joined = xp.sqrt(xp.mean(v * v)) + slope * measure(self._joined(self.q)) * xp.max(k * v)
            gain = xp.minimum(by_head, measure(self.out) * joined)
            gain = round_up(xp.where(xp.isnan(gain), math.inf, gain)[()], operations=4 * self.heads + 32)
        radius = incoming.scale(self._through(v, measure)).radius
        return Bound(radius, incoming.scale(gain).log_lipschitz).scale(abs(self.output_scale))

    def _through(self, z: Scalar, measure: Measure) -> Scalar:
        """A bound of what W_O makes of at most zᵢ from head i."""
        xp = namespace(z)
        whole = measure(self.out) * xp.sqrt(xp.mean(z * z))
        blocks = xp.sum(measure(self._columns()) * z)
        return round_up(xp.minimum(whole, blocks), operations=4 * self.heads + 16)

    def _joined(self, weight: Weight) -> Weight:
        """The heads of q as one (d, d) matrix: if each has at most σ, so has it, whose norm² is at most their mean."""
        return weight.with_array(weight.array.reshape(-1, weight.array.shape[-1]))

    def _split(self, weight: Weight) -> Weight:
        """The heads of q, k or v as (heads, d_h, d) with their caps.

        A head's rows of a matrix of norm at most σ can have the RMS→RMS norm σ√heads.
        """
        if weight.array.ndim == 3:
            return weight
        size = weight.array.shape[-1]
        array = weight.array.reshape(self.heads, -1, size)
        return dataclasses.replace(weight, array=array, cap=weight.cap * math.sqrt(self.heads))

    def _columns(self) -> Weight:
        """The column blocks of W_O as (heads, d, d_h): of a matrix of norm at most σ each has at most σ/√heads."""
        size = self.out.array.shape[0]
        array = self.out.array.reshape(size, self.heads, -1).swapaxes(0, 1)
        return dataclasses.replace(self.out, array=array, cap=self.out.cap / math.sqrt(self.heads))
