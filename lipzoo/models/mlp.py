"""Multilayer perceptrons."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.config.fields import field_refusal, options
from lipzoo.config.ranges import Count, Fraction, Positive, Range
from lipzoo.data.config import Sizes
from lipzoo.layers.activation import GELU, Identity, ReLU, Tanh
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import ConvexResidual, Sequential
from lipzoo.layers.init import check_cap, fresh
from lipzoo.layers.linear import Flatten, Linear, Scale
from lipzoo.layers.sorting import GroupSort
from lipzoo.models.config import AbstractModelConfig
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.space import Space
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight, check_names

Activation = Literal["relu", "gelu", "tanh", "maxmin", "groupsort", "identity"]
ACTIVATIONS: Mapping[Activation, Callable[[], AbstractModule]] = {
    "relu": ReLU,
    "gelu": GELU,
    "tanh": Tanh,
    "maxmin": GroupSort,
    "groupsort": lambda: GroupSort(group=8),
    "identity": Identity,
}
DEEPEST = 1024


class MLP(AbstractModule):
    """Flatten → (Linear → activation)* → Linear → scale.

    Every matrix has mass 1 in the modular norm, so of M matrices (biases included) each has the share 1/M, divided by
    the constant factors after it: the final scale, and α for a matrix on a residual branch.

    **Arguments:**

    - `in_size`, `width`, `out_size`, `depth`: `depth` ≥ 1 matrices, in_size → width → … → width → out_size.
    - `activation`: one of `ACTIVATIONS`.
    - `bias`: whether layers add a bias (first zero).
    - `residual`: α of a convex residual around each width → width layer; 0 for none.
    - `final_scale`: the factor on the logits.
    - `zero_init`: whether the last matrix starts at zero; all others start semi-orthogonal with norm min(1, cap).
    - `cap`: the norm cap of every weight (default: free); `lipzoo.theory.weight.set_caps` changes it one by one.

    Weights are named layers.0, layers.1, … and head, their biases layers.0.bias, ….

    !!! example

        ```python
        mlp = MLP(784, 256, 10, depth=3, cap=3.0, key=jax.random.key(0))
        logits = jax.vmap(mlp)(images)
        ```
    """

    deviates = True
    body: Sequential

    def __init__(
        self,
        in_size: int,
        width: int,
        out_size: int,
        *,
        depth: int = 3,
        activation: Activation = "relu",
        bias: bool = False,
        residual: float = 0.0,
        final_scale: float = 1.0,
        zero_init: bool = True,
        cap: float = math.inf,
        key: PRNGKeyArray,
    ):
        if min(in_size, width, out_size, depth) < 1:
            sizes = f"{in_size}, {width}, {out_size}, depth={depth}"
            raise ValueError(f"an MLP needs sizes and a depth of at least 1, but was given {sizes}")
        config = MLPConfig(depth, width, activation, bias, residual, final_scale, zero_init)
        if refusal := field_refusal(config) or config.conflict():
            raise ValueError(f"there is no such MLP: {refusal}")
        check_cap(cap)
        sizes = [in_size, *[width] * (depth - 1), out_size]
        share = 1 / (depth * (2 if bias else 1)) / final_scale
        layers: list[AbstractModule] = [Flatten()]
        for index, layer_key in enumerate(jax.random.split(key, depth)):
            last = index == depth - 1
            on_branch = 0 < index < depth - 1 and residual > 0
            linear = _linear(
                layer_key,
                sizes[index + 1],
                sizes[index],
                name="head" if last else f"layers.{index}",
                share=share / residual if on_branch else share,
                bias=bias,
                zero=zero_init and last,
                cap=cap,
            )
            block = linear if last else Sequential([linear, ACTIVATIONS[activation]()])
            layers.append(ConvexResidual(block, residual) if on_branch else block)
        if final_scale != 1:
            layers.append(Scale(final_scale))
        self.body = Sequential(layers)
        check_names(self)

    @property
    def takes(self) -> Space | None:
        """One vector, in whatever shape its entries stand: it is flattened first."""
        return self.body.takes

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " out"]:
        return self.body(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return self.body.bound(incoming, measure)

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        return self.body.spread(incoming, reach, steering)


def _linear(
    key: PRNGKeyArray, out_size: int, in_size: int, *, name: str, share: float, bias: bool, zero: bool, cap: float
) -> Linear:
    place, init = ("head" if name == "head" else "hidden"), ("zero" if zero else "orthogonal")
    matrix = fresh(key, (out_size, in_size), name=name, place=place, cap=cap, share=share, init=init)
    column = Weight(jnp.zeros((out_size, 1), jnp.float32), f"{name}.bias", COLUMN, cap, share) if bias else None
    return Linear(matrix, column)


@options
@dataclasses.dataclass(frozen=True)
class MLPConfig(AbstractModelConfig):
    """The part of a recipe that describes an MLP."""

    depth: Annotated[int, Range(1, DEEPEST, why="since every layer is compiled by itself")] = 3
    """Matrices from the pixels to the logits."""
    width: Count = 256
    """Features of every hidden layer."""
    activation: Activation = "relu"
    """Nonlinearity; each is 1-Lipschitz (gelu is divided by 1.129)."""
    bias: bool = False
    """Add a bias to every layer."""
    residual: Fraction = 0.0
    """α of a convex residual (1-α)x + αf(x) around each hidden width × width layer; 0 for none."""
    final_scale: Positive = 1.0
    """Fixed factor on the logits; counts in the bound."""
    zero_init: bool = True
    """Start the last matrix at zero."""

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        group = {"maxmin": 2, "groupsort": 8}.get(self.activation, 1)
        if self.depth > 1 and self.width % group:
            return f"--activation {self.activation} needs a --width divisible by {group}, got {self.width}"
        return None

    def parameters(self, sizes: Sizes) -> int:
        """Without biases."""
        hidden = max(self.depth - 2, 0) * self.width
        inputs, classes, _ = sizes
        return self.width * (inputs + classes + hidden) if self.depth > 1 else inputs * classes


def build_mlp(config: MLPConfig, sizes: Sizes, *, key: PRNGKeyArray) -> MLP:
    """The model with fresh weights, all of them free."""
    return MLP(sizes.inputs, out_size=sizes.classes, key=key, **dataclasses.asdict(config))
