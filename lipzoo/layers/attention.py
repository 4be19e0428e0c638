"""Multi-head attention whose bound is counted head by head."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.attend import attend
from lipzoo.layers.attention_error import attention_error
from lipzoo.layers.base import AbstractModule, Cache, Mask, Position, check_axes, check_positive
from lipzoo.layers.near_attention import Known, attention_near, heads_of
from lipzoo.layers.normalization import RMSNorm
from lipzoo.layers.product import product
from lipzoo.layers.rotary import rotate
from lipzoo.layers.side import side
from lipzoo.theory.balls import SURE_RADIUS, Balls
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import Scalar, exp_up, log_hypot, log_root_mean_square, log_sum, log_times, log_up, namespace
from lipzoo.theory.runs import Runs
from lipzoo.theory.space import Space, Tokens
from lipzoo.theory.weight import Measure, Weight

Heads = Float[Array, "time heads size"]


class Attention(AbstractModule):
    """x ↦ c·W_O concatᵢ softmax(s·qᵢkᵢᵀ/d_h) vᵢ; qᵢ = W_Q,i x, kᵢ = W_K,i x, vᵢ = W_V,i x.

    With `rotary`, qᵢ and kᵢ are then rotated by their positions.

    The logits are divided by the heads' width d_h, not by its root: then |qᵀk|/d_h is at most the product of RMS norms.

    **Attributes:**

    - `q`, `k`, `v`: arrays of shape (heads, d_h, d), each head a matrix of its own (granularity `head`), or (d, d), one
      matrix (granularity `matrix`). Caps, orthogonalization and shares follow that choice.
    - `out`: W_O, of shape (d, d).
    - `softmax_scale`: s ≥ 0. `output_scale`: c.
    - `bias`: added to the logits by distance, shape (heads, reach, 1); the last entry is for all distances beyond. It
      does not depend on x, so sharp attention to nearby tokens costs nothing in the bound, where sharp attention to
      content costs 2s.
    - `window`: how many tokens it looks back, itself among them; 0 for all.
    - `causal`: whether a token looks at none that comes after it.
    - `rotary`: whether q and k are rotated by their positions; if not, keys act alike anywhere: a sharper bound.
    - `qk_epsilon`, `v_epsilon`: where given, every head's q and k (or v) is divided by √(mean square + ε).
    """

    deviates = True
    q: Weight
    k: Weight
    v: Weight
    out: Weight
    heads: int = eqx.field(static=True)
    softmax_scale: float = eqx.field(static=True, default=1.0)
    output_scale: float = eqx.field(static=True, default=1 / 3)
    bias: Weight | None = None
    qk_epsilon: float | None = eqx.field(static=True, default=None)
    v_epsilon: float | None = eqx.field(static=True, default=None)
    window: int = eqx.field(static=True, default=0)
    rotary: bool = eqx.field(static=True, default=True)
    causal: bool = eqx.field(static=True, default=True)

    def __check_init__(self) -> None:
        width = self.out.array.shape[-1]
        if self.heads < 1 or width % (2 * self.heads):
            raise ValueError(f"{self.heads} heads need a width divisible by {2 * self.heads}, got {width}")
        self._check_shapes()
        if not 0 <= self.softmax_scale < math.inf:
            raise ValueError(f"the softmax scale must be at least 0 and finite, got {self.softmax_scale}")
        if self.window and not self.causal:
            raise ValueError("a window looks back: attention that is not causal has none")
        for epsilon in {self.qk_epsilon, self.v_epsilon} - {None}:
            check_positive(epsilon or 0.0, "the epsilon of a normalization")

    def _check_shapes(self) -> None:
        width = self.out.array.shape[-1]
        check_axes(self.out, "the output matrix of an attention", "(d, d)")
        for weight in (self.q, self.k, self.v, self.out):
            weight.geometry.check_multiplied(weight.name)
        shapes = {(width, width), (self.heads, width // self.heads, width)}
        if not {weight.array.shape for weight in (self.q, self.k, self.v)} <= shapes:
            raise ValueError(f"q, k and v of {self.heads} heads must have one of the shapes {shapes}")

    @property
    def takes(self) -> Space:
        return Tokens(self.out.array.shape[-1])

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time d"]:
        return self.masked(x, Mask())

    def masked(self, x: Float[Array, "time d"], mask: Mask) -> Float[Array, "time d"]:
        q, k, v = self._project(x, 0)
        return self._output(q, k, v, 0, mask)

    def extend(self, x: Float[Array, "time d"], cache: Cache, first: Position) -> tuple[Float[Array, "time d"], Cache]:
        if not self.causal:
            raise ValueError("attention that is not causal has no use for a cache: every token looks at later ones")
        q, k, v = self._project(x, first, cache[0].shape[-1])
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new.transpose(1, 2, 0), first, 2)
            for old, new in zip(cache, (k, v), strict=True)
        )
        if not self.softmax_scale:  # What counts for nothing is neither computed nor read.
            q, keys = jnp.zeros_like(q), cache[0]
        return self._output(q, keys.transpose(2, 0, 1), values.transpose(2, 0, 1), first, Mask()), (keys, values)

    def _project(self, x: Float[Array, "time d"], first: Position, room: int = 0) -> tuple[Heads, Heads, Heads]:
        q, k, v = (self._by_head(product(x, w.array.reshape(-1, x.shape[-1]))) for w in (self.q, self.k, self.v))
        if self.qk_epsilon is not None:
            q, k = RMSNorm(self.qk_epsilon)(q), RMSNorm(self.qk_epsilon)(k)
        if self.v_epsilon is not None:
            v = RMSNorm(self.v_epsilon)(v)
        return (rotate(q, first, room), rotate(k, first, room), v) if self.rotary else (q, k, v)

    def _by_head(self, x: Float[Array, "time d"]) -> Heads:
        return x.reshape(x.shape[0], self.heads, -1)

    def _output(
        self,
        q: Float[Array, "queries heads size"],
        k: Float[Array, "keys heads size"],
        v: Float[Array, "keys heads size"],
        first: Position,
        mask: Mask,
    ) -> Float[Array, "queries d"]:
        bias, scale = None if self.bias is None else self.bias.array[..., 0], self.softmax_scale / q.shape[-1]
        window = mask.window or self.window
        options = {"window": window, "documents": mask.documents, "bias": bias, "causal": self.causal}
        joined = attend(q, k, v, scale=scale, first=first, **options)
        return self.output_scale * product(joined.reshape(len(q), -1), self.out.array)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The smallest of the valid forms, for sequences measured by their largest token.

        Let every token have a norm of at most r, and let Q_i, K_i, V_i be the RMS→RMS norms of the heads' maps to qᵢ,
        kᵢ, vᵢ, hence ‖qᵢ‖ ≤ q_i = Q_i r and so on. (Where a head is normalized with ε, its map has Q_i/√ε instead, and
        q_i = min(1, Q_i r/√ε).) Any mask will do:

        1. Rows of a softmax are positive and sum to one, so within a head ‖AΔv‖ ≤ max‖Δv‖ and ‖Av‖ ≤ v_i.
        2. The ℓ₁ norm of a row of ΔA is at most the largest |Δs_j|, and |Δs| ≤ s(‖Δq‖‖k‖ + ‖q‖‖Δk‖), which is at most
           s(Q_ik_i + q_iK_i)‖Δx‖.
        3. Heads attend to different tokens, so the joined norm² is the mean of the heads' norms², bounded one by one:
           L (a) is √mean_i (V_i + s(Q_ik_i + q_iK_i)v_i)².
        4. Or with Q and q for all heads together: √mean‖Δqᵢ‖² ≤ Q‖Δx‖ and √mean‖qᵢ‖² ≤ q for the one token that asks,
           hence L (b) is √mean V_i² + s(Q max k_iv_i + q max K_iv_i).

        W_O takes zᵢ per head to at most ‖W_O‖√mean zᵢ², and to at most Σ‖W_O,i‖zᵢ with its column blocks.

        Where q, k and v are linear and not rotated, changes of values and of keys add up as sides of a right angle:

        5. In one head let ‖δx_j‖ ≤ 1. The keys' changes move the logits by ⟨c, δx_j⟩ with one vector c for all tokens,
           so by at most σ = sK_iq_i: let it be σξ_j, ξ_j the part of δx_j along c. Across c, Jensen's inequality gives
           ‖Σp_jδx_j‖² ≤ ξ̄² + Σp_j(1 - ξ_j²) = 1 - τ with τ the variance of ξ, and that of Cauchy and Schwarz
           ‖Σp_j(v_j - v̄)σξ_j‖ ≤ σv_i√τ. Hence V_i√(1-τ) + σv_i√τ ≤ √(V_i² + σ²v_i²) instead of V_i + σv_i, in (a);
           in (b), √(mean V_i² + (sq max K_iv_i)²). The query's own change adds what it did. A rotation, or the
           derivative of a normalization, would give every token a c of its own, and this is then false.

        What runs is off as `lipzoo.layers.attention_error` says, and by the product with W_O and c.
        """
        self._check_shapes()
        r, eps = incoming.tokens("attention", self.out.array.shape[-1]).log_radius, self.qk_epsilon
        q, k, joined = (side(measure(w), r, eps) for w in (self._split(self.q), self._split(self.k), self._joined()))
        v = side(measure(self._split(self.v)), r, self.v_epsilon)
        s, most = log_up(self.softmax_scale, r), namespace(v.gain).max
        keys, change = most(log_times(k.radius, v.radius)), most(log_times(k.gain, v.radius))
        if self.rotary or eps is not None or self.v_epsilon is not None:
            scores = log_sum([log_times(q.gain, k.radius), log_times(q.radius, k.gain)])
            alone = log_sum([v.gain, log_times(s, scores, v.radius)])
            change = log_sum([log_times(joined.gain, keys), log_times(joined.radius, change)])
            together = log_sum([log_root_mean_square(v.gain), log_times(s, change)])
        else:
            content = log_hypot(v.gain, log_times(s, q.radius, k.gain, v.radius))
            alone = log_sum([content, log_times(s, q.gain, k.radius, v.radius)])
            content = log_hypot(log_root_mean_square(v.gain), log_times(s, joined.radius, change))
            together = log_sum([content, log_times(s, joined.gain, keys)])
        together = log_times(log_up(measure(self.out), r), together)
        c = log_up(abs(self.output_scale), r)
        gain = log_times(c, namespace(together).minimum(self._through(alone, measure), together))
        radius = log_times(c, self._through(v.radius, measure))
        image = dataclasses.replace(incoming, log_radius=radius)
        return image.grow(log_up(1.0, r), gain).off(lambda runs: self._error(runs, incoming.radius, measure))

    def _error(self, runs: Runs, radius: Scalar, measure: Measure) -> Scalar:
        parts = [self._split(weight) for weight in (self.q, self.k, self.v)]
        epsilons = self.qk_epsilon, self.qk_epsilon, self.v_epsilon
        v, error = attention_error(parts, epsilons, self.rotary, self.softmax_scale, self.bias, radius, runs, measure)
        joined, norm = np.sqrt(np.mean((v + error) ** 2)), float(measure(self.out))
        scale = abs(self.output_scale)
        off = exp_up(self._through(log_up(error), measure)) + runs.product(self.out, joined, measure)
        return scale * off + runs.rounded(2, scale * (norm * joined + off)) + runs.counted(lambda a: a.holds(scale))

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """Around one sequence, whose scores and weights are known (see `lipzoo.layers.near_attention`)."""
        if not self.causal:
            return super().near(incoming, measure)
        self._check_shapes()
        known = Known(
            *(heads_of(w, self.heads) for w in (self.q, self.k, self.v)),
            *(np.asarray(measure(self._split(w)), np.float64) for w in (self.q, self.k, self.v)),
            scale=self.softmax_scale,
            bias=None if self.bias is None else np.asarray(self.bias.array, np.float64)[..., 0],
            window=self.window,
            rotary=self.rotary,
            qk_epsilon=self.qk_epsilon,
            v_epsilon=self.v_epsilon,
        )
        joined, moved = attention_near(known, incoming)
        whole = float(measure(self.out)) * np.sqrt((moved**2).mean(0))
        by_head = (np.asarray(measure(self._columns()))[:, None] * moved).sum(0)
        c, out = abs(self.output_scale), np.asarray(self.out.array, np.float64)
        gain = c * float(measure(self.out))
        center = self.output_scale * (joined @ out.T)
        rounding = Balls(joined, np.zeros(len(joined))).moved(center, np.zeros(len(joined)), gain=gain).radius
        return Balls(center, (c * np.minimum(whole, by_head) + rounding) * SURE_RADIUS)

    def _through(self, z: Scalar, measure: Measure) -> Scalar:
        """The logarithm of a bound of what W_O makes of at most exp(zᵢ) from head i."""
        whole = log_times(log_up(measure(self.out), z), log_root_mean_square(z))
        return namespace(z).minimum(whole, log_sum(log_times(log_up(measure(self._columns()), z), z)))

    def _joined(self) -> Weight:
        """The heads of q as one (d, d) matrix: if each has at most σ, so has it, whose norm² is at most their mean."""
        return self.q.with_array(self.q.array.reshape(-1, self.q.array.shape[-1]))

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
