"""Modules that run, bound and constrain themselves, and the parts that networks are made of.

A module has `__call__` on one unbatched example (callers vmap) and `bound`, which maps what is known of its input to
what is known of its output. Both stand side by side, so that a certificate cannot describe another network than the one
that runs; and both refuse what the module does not take, so that no bound speaks of another space than it holds in.
"""

import abc
import math
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from lipzoo.theory.balls import Balls
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.numbers import format_power
from lipzoo.theory.space import Space, SpaceError, Tokens
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Projection, Weight, cap_norm, is_weight, map_weights, weights

Module = TypeVar("Module", bound="AbstractModule")
Cache = tuple[Float[Array, "heads size _room"], Float[Array, "heads size _room"]]
"""Keys and values of an attention, of as many tokens as there is room for, lying as products read them."""
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
    """A map of vectors (or of sequences of vectors) that knows its own sensitivity.

    `tokenwise` says that of a sequence it maps every token by itself; `deviates`, that `bound` tells by `Bound.off` how
    far what runs can be from what is meant (`lipzoo.theory.runs`): else nothing is said of rounding or other weights.
    """

    tokenwise: ClassVar[bool] = False
    deviates: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """What a class says beyond its bound is of its own map: one that maps otherwise does not inherit it."""
        super().__init_subclass__(**options)
        anew = {"__call__", "masked", "bound"} & set(vars(cls))
        if anew and "deviates" not in vars(cls):
            cls.deviates = False
        concrete = (vars(base).get("__call__") for base in cls.__mro__[1:])
        if anew and any(call is not None and not getattr(call, "__isabstractmethod__", False) for call in concrete):
            for name in {"spread", "near", "tokenwise"} - set(vars(cls)):
                setattr(cls, name, vars(AbstractModule)[name])

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

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        """How a change of the network's input spreads to the output, from how it spreads to the module's input.

        `reach` bounds that input. Here it is by the module's bound alone, which is a ball: modules that know more say
        it. Around one input (`incoming.around`) a module must know where that goes, exactly.

        **Raises:** SpaceError if the output is no vector, or the module does not know itself around one input.
        """
        if incoming.around is not None:
            raise SpaceError(f"{type(self).__name__} has no bound around one input: give it a method `spread`")
        image = self.bound(Bound.start(reach.space, reach.radius), steering.measure).vector(type(self).__name__)
        size = image.space.size  # pyright: ignore[reportAttributeAccessIssue]
        return incoming.stretched(float(image.lipschitz) * math.sqrt(size / incoming.size), size)

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        """Where tokens near those of one sequence go: no further than the bound says for tokens of their sizes."""
        size = float(incoming.sizes.max())
        image = self.bound(Bound.start(Tokens(incoming.center.shape[1]), size), measure)
        radius = incoming.radius if self.tokenwise else np.full_like(incoming.radius, incoming.radius.max())
        gain, parts = float(image.lipschitz), weights(self)
        width = max((size for weight in parts for size in weight.array.shape), default=0)
        center = in_float64(self, incoming.center)
        return incoming.moved(center, gain * radius, gain=gain, width=width, depth=len(parts) + 1)

    def extend(self, x: Shaped[Array, "..."], cache: Cache, first: Position) -> tuple[Float[Array, "..."], Cache]:
        """The output for further tokens of a sequence, the first of them at position `first`.

        `cache` holds keys and values of the tokens before, and of these when it comes back. A block has one attention;
        modules that treat tokens one by one have nothing to remember.
        """
        return self(x), cache

    def masked(self, x: Shaped[Array, "..."], mask: Mask) -> Float[Array, "..."]:
        """The output for a sequence in which attention is masked; nothing else looks at other tokens."""
        return self(x)

    def project(self: Module, constraint: Projection, step: Any = None) -> Module:
        """This module with every capped weight constrained, as after an optimizer step `step`.

        By default the step is taken to be what brought each weight where it is, wherever that may be.
        """
        if isinstance(constraint, type) or not isinstance(constraint, Projection):
            raise TypeError(
                f"project takes a constraint, such as lipzoo.constraints.SvdCap(), but was given {constraint!r:.60}"
            )
        return map_weights(lambda weight: constraint.apply(weight, step), self)

    def matrices(self) -> list[Weight]:
        """The weights as rows of a certificate: one for each place in the network."""

        def is_part(node: Any) -> bool:  # A weight, or a module inside that holds many places in one array, as a stack.
            return is_weight(node) or (isinstance(node, AbstractStack) and node is not self)

        nodes = [node for node in jax.tree.leaves(self, is_leaf=is_part) if is_part(node)]
        return [weight for node in nodes for weight in ([node] if is_weight(node) else node.matrices())]

    def __repr__(self) -> str:
        rows = [_describe(weight) for weight in weights(self)]
        return "\n".join([type(self).__name__, *rows, f"  {_a_priori(self)}"])


def in_float64(module: AbstractModule, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """What a module gives where everything is computed in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: jnp.asarray(np.asarray(array), jnp.float64), module)
        return np.asarray(_run(wide, jnp.asarray(x, jnp.float64)))


@jax.jit
def _run(module: AbstractModule, x: Shaped[Array, "..."]) -> Float[Array, "..."]:
    return module(x)


def silent(module: AbstractModule) -> list[str]:
    """The types of parts that do not say how far what runs can be from what is meant."""
    inner = jax.tree.leaves(list(vars(module).values()), is_leaf=lambda node: isinstance(node, AbstractModule))
    names = [name for node in inner if isinstance(node, AbstractModule) for name in silent(node)]
    return sorted({*names, *([] if module.deviates else [type(module).__name__])})


class AbstractStack(AbstractModule):
    """Many blocks in one."""

    @abc.abstractmethod
    def matrices(self) -> list[Weight]:
        """The weights of all blocks, each named after its place."""


def _a_priori(module: AbstractModule) -> str:
    """What the caps alone say, where the module knows what it takes and can be bounded."""
    # Caps and shapes suffice: real arrays would be cut into blocks, abstract ones cannot be.
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


def check_weight(value: Any, who: str, shape_of: str) -> None:
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


def check_column(bias: Weight, size: int) -> None:
    """Raises ValueError unless a bias is one column of so many entries."""
    check_axes(bias, "a bias", "(size, 1)")
    bias.geometry.check_multiplied(bias.name)
    if bias.array.shape[0] != size:
        raise ValueError(f"{bias.name} has {bias.array.shape[0]} entries, but {size} are added to")


def check_positive(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{what} must be positive and finite, got {value}")
