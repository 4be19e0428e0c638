"""Modules that run, bound and constrain themselves, and the parts that networks are made of.

A module has `__call__` on one unbatched example (callers vmap) and `bound`, which maps what is known of its input to
what is known of its output. Both stand side by side, so that a certificate cannot describe another network than the one
that runs.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lipzoo import norms
from lipzoo.bound import Bound, Scalar, format_power, namespace, weighted_sum
from lipzoo.constraints.base import Constraint, Step
from lipzoo.weight import Measure, Weight, cap_norm, is_weight, map_weights, weights

Module = TypeVar("Module", bound="AbstractModule")

GELU_SLOPE = {"exact": 1.1289041451852, "tanh": 1.1289930686588}
"""sup GELU', rounded up: of x·Φ(x) at x = √2, and of the tanh form that JAX runs by default."""
GELU_DIVISOR = 1.129
"""c above both slopes, so that GELU/c is 1-Lipschitz."""
NORM_EPSILON = 1e-6
"""ε of normalization layers. Their Lipschitz constant is 1/√ε."""


Cache = tuple[Float[Array, "*blocks room heads size"], Float[Array, "*blocks room heads size"]]
"""Keys and values of an attention, of as many tokens as there is room for."""
Position = int | Int[Array, ""]


class Mask(eqx.Module):
    """What attention may look at, beside nothing that comes later.

    **Attributes:**

    - `window`: the token itself and the `window` - 1 tokens before it, instead of the attention's own window; 0 to
      leave it.
    - `documents`: a number for each token; only tokens of the same number see one another.
    """

    window: int = eqx.field(static=True, default=0)
    documents: Int[Array, " time"] | None = None


class AbstractModule(eqx.Module):
    """A map of vectors (or of sequences of vectors) that knows its own sensitivity."""

    @property
    def tokens(self) -> bool:
        """Whether inputs are sequences of tokens, measured by their largest one."""
        return False

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output for one example."""

    @abc.abstractmethod
    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The output's bound, from the input's, with the norms of weights given by `measure`.

        `incoming` bounds the input: no larger in RMS norm than `radius`, and `exp(log_lipschitz)`-Lipschitz in whatever
        the statement is about. `measure` is `cap_norm` (a priori), `exact_norm` (certified) or `gram_norm` (inside
        jit).
        """

    def extend(self, x: Float[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        """The output for further tokens of a sequence, the first of them at position `first`.

        `cache` holds keys and values of the tokens before, and of these when it comes back. A block has one attention;
        modules that treat tokens one by one have nothing to remember.
        """
        return self(x), cache

    def masked(self, x: Float[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        """The output for a sequence in which attention is masked; nothing else looks at other tokens."""
        return self(x)

    def project(self: Module, constraint: Constraint, step: Step | None = None) -> Module:
        """This module with every capped weight constrained, as after an optimizer step `step`.

        By default the step is taken to be what brought each weight where it is, wherever that may be.
        """
        return map_weights(lambda weight: project(weight, constraint, step), self)

    def matrices(self) -> list[Weight]:
        """The weights as rows of a certificate: one for each place in the network."""

        def has_rows(node: Any) -> bool:  # A weight, or a module inside that finds its own, as a stack does.
            overrides = isinstance(node, AbstractModule) and type(node).matrices is not AbstractModule.matrices
            return is_weight(node) or (overrides and node is not self)

        nodes = [node for node in jax.tree.leaves(self, is_leaf=has_rows) if has_rows(node)]
        return [weight for node in nodes for weight in ([node] if is_weight(node) else node.matrices())]

    def __repr__(self) -> str:
        rows = [_describe(weight) for weight in weights(self)]
        # Caps and shapes are all that it takes: real arrays would be cut into blocks, abstract ones cannot be.
        hollow = map_weights(lambda w: w.with_array(np.broadcast_to(np.float32(0), w.array.shape)), self)
        bound = hollow.bound(Bound(1.0, 0.0), cap_norm)
        last = f"  a-priori Lipschitz bound (RMS → RMS): {format_power(bound.log10_lipschitz)}"
        return "\n".join([type(self).__name__, *rows, last])


def _describe(weight: Weight) -> str:
    shape = "×".join(str(size) for size in np.shape(weight.array))
    cap = "free" if math.isinf(weight.cap) else f"cap {weight.cap:g}"
    return f"  {weight.name:28} {shape:>12}  {cap:9}  share {weight.share:.4g}"


def project(weight: Weight, constraint: Constraint, step: Step | None) -> Weight:
    """One weight constrained; a weight with an infinite cap is free of constraints that need one."""
    if constraint.caps and math.isinf(weight.cap):
        return weight
    factor = weight.rms_factor
    matrix = weight.array * factor
    if step is None:
        step = Step(jnp.maximum(norms.gram_norm(matrix) - weight.cap, 0))
    return weight.with_array(constraint(matrix, cap=weight.cap, step=step) / factor)


class Linear(AbstractModule):
    """x ↦ Wx + b. The bias, if any, is a `Weight` of one column."""

    weight: Weight
    bias: Weight | None = None

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        y = x @ self.weight.array.mT  # In this order a batch of x stays in rows.
        return y if self.bias is None else y + self.bias.array[:, 0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(‖W‖r + ‖b‖, ‖W‖L)."""
        image = incoming.scale(measure(self.weight))
        return image if self.bias is None else image.shift(measure(self.bias))


class Identity(AbstractModule):
    """x ↦ x."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming


class Flatten(AbstractModule):
    """An array of any shape as one vector, which has the same RMS norm."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " size"]:
        return x.reshape(-1)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming


class Scale(AbstractModule):
    """x ↦ sx for a fixed s."""

    factor: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.factor * x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(|s|r, |s|L)."""
        return incoming.scale(abs(self.factor))


class ReLU(AbstractModule):
    """max(x, 0): 1-Lipschitz and |max(x, 0)| ≤ |x|, so nothing changes."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.relu(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming


class GELU(AbstractModule):
    """GELU(x)/c. |GELU(x)| ≤ |x| gives the radius r/c; the slope is at most g = sup GELU', 1.1290 rounded up."""

    divisor: float = eqx.field(static=True, default=GELU_DIVISOR)
    exact: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        _check_positive(self.divisor, "the divisor of a GELU")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.gelu(x, approximate=not self.exact) / self.divisor

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r/c, gL/c). With c ≥ g the map is 1-Lipschitz, which is then said without rounding."""
        slope = GELU_SLOPE["exact" if self.exact else "tanh"] / self.divisor
        image = incoming.scale(slope) if slope > 1 else incoming
        return Bound(incoming.scale(1 / self.divisor).radius, image.log_lipschitz)


class Tanh(AbstractModule):
    """c·tanh(x/c), the tanh soft cap; c = 1 is the plain activation. 1-Lipschitz, at most |x| and at most c."""

    limit: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        _check_positive(self.limit, "the limit of a tanh")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.limit * jnp.tanh(x / self.limit)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(min(r, c), L)."""
        return incoming.clip(self.limit)


class SquaredReLU(AbstractModule):
    """max(x, 0)² on vectors of `size` entries (So et al. 2021, arXiv 2109.08668): steeper the larger its input."""

    size: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        if x.size != self.size:
            raise ValueError(f"a squared ReLU of size {self.size} was given a vector of {x.size} entries")
        return jax.nn.relu(x) ** 2

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(√n·r², 2√n·rL): no entry is above √n·r, so none is multiplied by more than that, nor is any slope above
        twice that.
        """
        largest = incoming.scale(math.sqrt(self.size)).radius
        return Bound(incoming.scale(largest).radius, incoming.scale(2 * largest).log_lipschitz)


class RMSNorm(AbstractModule):
    """x/√(mean x² + ε) (Zhang & Sennrich 2019, arXiv 1910.07467), without learned gains: see `Affine`."""

    epsilon: float = eqx.field(static=True, default=NORM_EPSILON)

    def __check_init__(self) -> None:
        _check_positive(self.epsilon, "the epsilon of a normalization")

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # Squares of bfloat16 keep eight bits.
        scale = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(x.dtype)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(min(1, r/√ε), L/√ε): the derivative is (I - x̂x̂ᵀ/n)/√(mean x² + ε) with a norm of at most 1/√ε."""
        return incoming.scale(1 / math.sqrt(self.epsilon)).clip(1.0)


class Center(AbstractModule):
    """c·(x - mean x): a projection, hence 1-Lipschitz for c = 1."""

    factor: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        return self.factor * (x - jnp.mean(x, axis=-1, keepdims=True))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(|c|r, |c|L)."""
        return incoming.scale(abs(self.factor))


def layer_norm(epsilon: float = NORM_EPSILON) -> "Sequential":
    """(x - mean x)/√(var x + ε) (Ba et al. 2016, arXiv 1607.06450), without learned gains."""
    return Sequential([Center(), RMSNorm(epsilon)])


class Affine(AbstractModule):
    """γ ⊙ x + β. `gain` holds γ as 1×1 matrices, shape (size, 1, 1), so that a norm of it is that of one entry."""

    gain: Weight
    bias: Weight | None = None

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        y = x * _row(self.gain.array[:, 0, 0], x)
        return y if self.bias is None else y + _row(self.bias.array[:, 0], x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(max|γ|·r + ‖β‖, max|γ|·L)."""
        image = incoming.scale(_largest(measure(self.gain)))
        return image if self.bias is None else image.shift(measure(self.bias))


def _check_positive(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{what} must be positive and finite, got {value}")


def _row(vector: Float[Array, " size"], like: Float[Array, "*batch size"]) -> Float[Array, "*ones size"]:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _largest(values: Scalar) -> Scalar:
    return namespace(values).max(values)


class GroupSort(AbstractModule):
    """Sorts each group of neighbouring entries (Anil et al. 2019, arXiv 1811.05381); groups of 2 are MaxMin.

    It permutes entries, which keeps the norm, and sorting is 1-Lipschitz.
    """

    group: int = eqx.field(static=True, default=2)

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        if x.size % self.group:
            raise ValueError(f"groups of {self.group} do not divide a vector of {x.size} entries")
        if self.group == 2:
            first, second = x[0::2], x[1::2]
            pairs = (jnp.minimum(first, second), jnp.maximum(first, second))
            return jnp.stack(pairs, axis=-1).reshape(-1)
        return jnp.sort(x.reshape(-1, self.group), axis=-1).reshape(-1)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming


class Sequential(AbstractModule):
    """Modules one after the other."""

    layers: tuple[AbstractModule, ...]

    def __init__(self, layers: Sequence[AbstractModule]):
        self.layers = tuple(layers)

    @property
    def tokens(self) -> bool:
        return any(layer.tokens for layer in self.layers)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.masked(x, Mask())

    def masked(self, x: Float[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        for layer in self.layers:
            x = layer.masked(x, mask)
        return x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for layer in self.layers:
            incoming = layer.bound(incoming, measure)
        return incoming

    def extend(self, x: Float[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        for layer in self.layers:
            x, cache = layer.extend(x, cache, first)
        return x, cache


class AbstractResidual(AbstractModule):
    """A branch f beside the identity."""

    branch: eqx.AbstractVar[AbstractModule]

    @abc.abstractmethod
    def combine(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output, from x and f(x)."""

    @property
    def tokens(self) -> bool:
        return self.branch.tokens

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.masked(x, Mask())

    def masked(self, x: Float[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        return self.combine(x, self.branch.masked(x, mask))

    def extend(self, x: Float[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        image, cache = self.branch.extend(x, cache, first)
        return self.combine(x, image), cache


class ConvexResidual(AbstractResidual):
    """(1-α)x + αf(x) with 0 ≤ α ≤ 1: if f is 1-Lipschitz, so is this."""

    branch: AbstractModule
    alpha: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"a convex residual needs 0 ≤ alpha ≤ 1, got {self.alpha}")

    def combine(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        return (1 - self.alpha) * x + self.alpha * image

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """((1-α)r + αr_f, (1-α)L + αL_f)."""
        return weighted_sum((1 - self.alpha, self.alpha), (incoming, self.branch.bound(incoming, measure)))


class Residual(AbstractResidual):
    """x + f(x)."""

    branch: AbstractModule

    def combine(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        return x + image

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(r + r_f, L + L_f)."""
        return weighted_sum((1.0, 1.0), (incoming, self.branch.bound(incoming, measure)))


class PerToken(AbstractModule):
    """A map of vectors on every token. Sequences are measured by their largest token, so the bound is the same."""

    module: AbstractModule

    @property
    def tokens(self) -> bool:
        return True

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time out"]:
        return jax.vmap(self.module)(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return self.module.bound(incoming, measure)
