"""Modules that run, bound and constrain themselves, and the parts that networks are made of.

A module has `__call__` on one unbatched example (callers vmap) and `bound`, which maps what is known of its input to
what is known of its output. Both stand side by side, so that a certificate cannot describe another network than the one
that runs; and both refuse what the module does not take, so that no bound speaks of another space than it holds in.
"""

import abc
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from lipzoo.theory import norms
from lipzoo.theory.bound import Bound, Scalar, format_power, log_times, log_up, namespace, weighted_sum
from lipzoo.constraints.base import Constraint, Step
from lipzoo.theory.space import Space, SpaceError, Tokens, Vector, example_shape
from lipzoo.theory.weight import Measure, Weight, cap_norm, is_weight, map_weights, weights

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
    def takes(self) -> Space | None:
        """The space of inputs, where the module itself knows it."""
        return None

    @abc.abstractmethod
    def __call__(self, x: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """The output for one example."""

    @abc.abstractmethod
    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The output's bound, from the input's, with the norms of weights given by `measure`.

        `incoming` bounds the input: no larger in norm than `radius`, and `exp(log_lipschitz)`-Lipschitz in whatever
        the statement is about. `measure` is `cap_norm` (a priori), `exact_norm` (certified) or `gram_norm` (inside
        jit).

        **Raises:** SpaceError if the input is not in a space that the module takes.
        """

    def extend(self, x: Shaped[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        """The output for further tokens of a sequence, the first of them at position `first`.

        `cache` holds keys and values of the tokens before, and of these when it comes back. A block has one attention;
        modules that treat tokens one by one have nothing to remember.
        """
        return self(x), cache

    def masked(self, x: Shaped[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        """The output for a sequence in which attention is masked; nothing else looks at other tokens."""
        return self(x)

    def project(self: Module, constraint: Constraint, step: Step | None = None) -> Module:
        """This module with every capped weight constrained, as after an optimizer step `step`.

        By default the step is taken to be what brought each weight where it is, wherever that may be.
        """
        if not isinstance(constraint, Constraint):
            raise TypeError(
                f"project takes a constraint, such as lipzoo.constraints.SvdCap(), but was given {constraint!r:.60}"
            )
        return map_weights(lambda weight: project(weight, constraint, step), self)

    def matrices(self) -> list[Weight]:
        """The weights as rows of a certificate: one for each place in the network."""

        def is_part(node: Any) -> bool:  # A weight, or a module inside that holds many places in one array, as a stack.
            return is_weight(node) or (isinstance(node, AbstractStack) and node is not self)

        nodes = [node for node in jax.tree.leaves(self, is_leaf=is_part) if is_part(node)]
        return [weight for node in nodes for weight in ([node] if is_weight(node) else node.matrices())]

    def __repr__(self) -> str:
        rows = [_describe(weight) for weight in weights(self)]
        return "\n".join([type(self).__name__, *rows, f"  {_a_priori(self)}"])


class AbstractStack(AbstractModule):
    """Many blocks in one."""

    @abc.abstractmethod
    def matrices(self) -> list[Weight]:
        """The weights of all blocks, each named after its place."""


def _a_priori(module: AbstractModule) -> str:
    """What the caps alone say, where the module knows what it takes and can be bounded."""
    # Caps and shapes are all that it takes: real arrays would be cut into blocks, abstract ones cannot be.
    hollow = map_weights(lambda w: w.with_array(np.broadcast_to(np.float32(0), w.array.shape)), module)
    try:
        space = module.takes
        if space is None:
            return "no bound without a space of inputs"
        bound = hollow.bound(Bound.start(space), cap_norm)
    except ValueError as error:  # A model that is put together wrongly can be looked at, too.
        return f"no bound: {error}"
    return f"a-priori Lipschitz bound (RMS → RMS): {format_power(bound.log10_lipschitz)}"


def check_module(value: Any, who: str) -> None:
    """Raises TypeError, saying what to write instead, unless the value is a module of this library."""
    if isinstance(value, AbstractModule):
        return
    name = getattr(value, "__name__", type(value).__name__)
    if isinstance(value, type) and issubclass(value, AbstractModule):
        raise TypeError(f"{who} takes modules, and {name} is a class of them: write {name}()")
    if isinstance(getattr(value, "model", None), AbstractModule):
        raise TypeError(f"{who} takes modules that know their bound: write the .model of this {name}")
    known = {"relu": "ReLU()", "gelu": "GELU()", "tanh": "Tanh()", "MLP": "MLP(…)", "Linear": "Linear(Weight(…))"}
    remedy = known.get(name, "AbstractModule, subclassed with __call__ and bound")
    raise TypeError(f"{who} takes modules that know their bound, not {name}: write lipzoo.models.{remedy}")


def check_shape(x: Any, shape: tuple[int, ...], who: str) -> None:
    """Raises ValueError unless one example has this shape."""
    if x.shape != shape:
        raise ValueError(
            f"{who} takes one example of shape {shape}, but was given shape {x.shape}: for a batch, jax.vmap the model"
        )


def _check_weight(value: Any, who: str, shape_of: str) -> None:
    """Raises TypeError, saying what to write instead, unless the value is a Weight."""
    if not isinstance(value, Weight):
        wanted = f"{who}(Weight(array, 'name')) with an array of shape {shape_of}"
        raise TypeError(f"{who} takes a Weight, but was given {value!r:.60}: write {wanted}")


def check_axes(weight: Weight, who: str, shape_of: str = "(out, in)") -> None:
    """Raises ValueError unless an array has this shape, as in `(size, 1, 1)`; an ensemble built by vmap has more axes.

    A gain whose matrices had more entries than one would be measured by all of them, and multiply by one.
    """
    shape, wanted = weight.array.shape, shape_of.strip("()").split(", ")
    if len(shape) > len(wanted):
        raise ValueError(
            f"{weight.name} has the shape {shape}, but {who} has {len(wanted)} axes: of an ensemble take one member, "
            "as in jax.tree.map(lambda x: x[0], models)"
        )
    if len(shape) < len(wanted) or any(w == "1" != str(n) for n, w in zip(shape, wanted, strict=True)):
        raise ValueError(f"{weight.name} has the shape {shape}, but {who} has the shape {shape_of}")
    if not math.prod(shape):
        raise ValueError(f"{weight.name} has the shape {shape}: a matrix without entries has no norm")


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


def check_column(bias: Weight, size: int) -> None:
    """Raises ValueError unless a bias is one column of so many entries."""
    check_axes(bias, "a bias", "(size, 1)")
    if bias.array.shape[0] != size:
        raise ValueError(f"{bias.name} has {bias.array.shape[0]} entries, but {size} are added to")


class Linear(AbstractModule):
    """x ↦ Wx + b. The bias, if any, is a `Weight` of one column."""

    weight: Weight
    bias: Weight | None = None

    def __check_init__(self) -> None:
        _check_weight(self.weight, "Linear", "(out, in)")

    @property
    def takes(self) -> Space:
        return Vector(self.weight.array.shape[-1:])

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        check_shape(x, self.weight.array.shape[-1:], self.weight.name)
        y = x @ self.weight.array.mT  # In this order a batch of x stays in rows.
        return y if self.bias is None else y + self.bias.array[:, 0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(‖W‖r + ‖b‖, ‖W‖L)."""
        check_axes(self.weight, "a matrix")
        out_size, in_size = self.weight.array.shape
        if self.bias is not None:
            check_column(self.bias, out_size)
        image = (
            incoming.vector(self.weight.name, in_size, flat=True).scale(measure(self.weight)).to(Vector((out_size,)))
        )
        return image if self.bias is None else image.shift(measure(self.bias))


class Identity(AbstractModule):
    """x ↦ x."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming.sized("Identity")


class Flatten(AbstractModule):
    """An array of any shape as one vector, which has the same RMS norm."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " size"]:
        return x.reshape(-1)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """The same. Tokens are measured one by one, so a sequence of them is not one vector of the same norm."""
        size = incoming.vector("Flatten").space.size  # pyright: ignore[reportAttributeAccessIssue]
        return incoming.to(Vector((size,)))


class Scale(AbstractModule):
    """x ↦ sx for a fixed s."""

    factor: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.factor * x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(|s|r, |s|L)."""
        return incoming.sized("Scale").scale(abs(self.factor))


class ReLU(AbstractModule):
    """max(x, 0): 1-Lipschitz and |max(x, 0)| ≤ |x|, so nothing changes."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.relu(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return incoming.sized("ReLU")


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
        divisor = float(self.divisor)
        slope = GELU_SLOPE["exact" if self.exact else "tanh"] / divisor
        like = incoming.sized("GELU").log_radius
        return incoming.grow(log_up(1 / divisor, like), log_up(max(slope, 1.0), like))


class Tanh(AbstractModule):
    """c·tanh(x/c), the tanh soft cap; c = 1 is the plain activation. 1-Lipschitz, at most |x| and at most c."""

    limit: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        _check_positive(self.limit, "the limit of a tanh")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.limit * jnp.tanh(x / self.limit)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(min(r, c), L)."""
        return incoming.sized("Tanh").clip(self.limit)


class SquaredReLU(AbstractModule):
    """max(x, 0)² on vectors of `size` entries (So et al. 2021, arXiv 2109.08668): steeper the larger its input."""

    size: int = eqx.field(static=True)

    @property
    def takes(self) -> Space:
        return Vector((self.size,))

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        if x.size != self.size:
            raise ValueError(f"a squared ReLU of size {self.size} was given a vector of {x.size} entries")
        return jax.nn.relu(x) ** 2

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(√n·r², 2√n·rL): no entry is above √n·r, so none is multiplied by more than that, nor is any slope above
        twice that.
        """
        radius = incoming.vector("SquaredReLU", self.size).log_radius
        largest = log_times(log_up(math.sqrt(self.size), radius), radius)
        return incoming.grow(largest, log_times(log_up(2.0, radius), largest))


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
        return incoming.sized("RMSNorm").scale(1 / math.sqrt(float(self.epsilon))).clip(1.0)


class Center(AbstractModule):
    """c·(x - mean x): a projection, hence 1-Lipschitz for c = 1."""

    factor: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        return self.factor * (x - jnp.mean(x, axis=-1, keepdims=True))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(|c|r, |c|L)."""
        return incoming.sized("Center").scale(abs(self.factor))


def layer_norm(epsilon: float = NORM_EPSILON) -> "Sequential":
    """(x - mean x)/√(var x + ε) (Ba et al. 2016, arXiv 1607.06450), without learned gains."""
    return Sequential([Center(), RMSNorm(epsilon)])


class Affine(AbstractModule):
    """γ ⊙ x + β. `gain` holds γ as 1×1 matrices, shape (size, 1, 1), so that a norm of it is that of one entry."""

    gain: Weight
    bias: Weight | None = None

    def __check_init__(self) -> None:
        _check_weight(self.gain, "Affine", "(size, 1, 1)")

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        y = x * _row(self.gain.array[:, 0, 0], x)
        return y if self.bias is None else y + _row(self.bias.array[:, 0], x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(max|γ|·r + ‖β‖, max|γ|·L)."""
        check_axes(self.gain, "a gain", "(size, 1, 1)")
        if self.bias is not None:
            check_column(self.bias, self.gain.array.shape[0])
        _check_last(incoming, self.gain, "Affine")
        image = incoming.scale(_largest(measure(self.gain)))
        return image if self.bias is None else image.shift(measure(self.bias))


def _check_last(incoming: Bound, gain: Weight, who: str) -> None:
    """Raises SpaceError unless what comes in has one entry in its last axis for each of the gain's."""
    space, size = incoming.sized(who).space, gain.array.shape[0]
    entries = space.size if isinstance(space, Tokens) else example_shape(space)[-1]
    if entries != size:
        raise SpaceError(f"{gain.name} multiplies {size} entries, but was given {space}")


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
        size = incoming.vector("GroupSort", flat=True).space.size  # pyright: ignore[reportAttributeAccessIssue]
        if size % self.group:
            raise SpaceError(f"groups of {self.group} do not divide {incoming.space}")
        return incoming


class Sequential(AbstractModule):
    """Modules one after the other."""

    layers: tuple[AbstractModule, ...]

    def __init__(self, layers: Iterable[AbstractModule]):
        self.layers = tuple(layers)
        for layer in self.layers:
            check_module(layer, "Sequential")

    @property
    def takes(self) -> Space | None:
        """What the first layer takes that knows; those before it keep the number of entries."""
        return next((space for layer in self.layers if (space := layer.takes) is not None), None)

    def __call__(self, x: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return self.masked(x, Mask())

    def masked(self, x: Shaped[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        for layer in self.layers:
            x = layer.masked(x, mask)
        return x

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for layer in self.layers:
            incoming = layer.bound(incoming, measure)
        return incoming

    def extend(self, x: Shaped[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        for layer in self.layers:
            x, cache = layer.extend(x, cache, first)
        return x, cache


class AbstractResidual(AbstractModule):
    """A branch f beside the identity."""

    branch: eqx.AbstractVar[AbstractModule]

    def __check_init__(self) -> None:
        check_module(self.branch, type(self).__name__)

    @abc.abstractmethod
    def combine(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output, from x and f(x)."""

    @property
    def takes(self) -> Space | None:
        return self.branch.takes

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.masked(x, Mask())

    def masked(self, x: Float[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        return self._beside(x, self.branch.masked(x, mask))

    def extend(self, x: Float[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        image, cache = self.branch.extend(x, cache, first)
        return self._beside(x, image), cache

    def _beside(self, x: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, "..."]:
        check_shape(image, x.shape, "the identity beside a branch")  # NumPy would repeat the smaller one.
        return self.combine(x, image)


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
        alpha = float(self.alpha)
        return weighted_sum((1 - alpha, alpha), (incoming, self.branch.bound(incoming, measure)))


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

    def __check_init__(self) -> None:
        check_module(self.module, "PerToken")

    @property
    def takes(self) -> Space | None:
        return None if self.module.takes is None else Tokens(math.prod(example_shape(self.module.takes)))

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time out"]:
        return jax.vmap(self.module)(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        size = incoming.tokens("PerToken").space.size  # pyright: ignore[reportAttributeAccessIssue]
        image = self.module.bound(incoming.to(Vector((size,))), measure)
        return image.to(Tokens(image.vector("PerToken", flat=True).space.size))  # pyright: ignore
