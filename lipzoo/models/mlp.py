"""Multilayer perceptrons."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.config.fields import field_refusal
from lipzoo.data.config import Sizes
from lipzoo.layers.activation import GELU, Identity, ReLU, Tanh
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import ConvexResidual, Sequential
from lipzoo.layers.init import check_cap, fresh
from lipzoo.layers.linear import Flatten, Linear, Scale
from lipzoo.layers.potential import PotentialResidual
from lipzoo.layers.reparametrized import ACTIVE, REPARAMETRIZED
from lipzoo.layers.sorting import GroupSort
from lipzoo.models.mlp_config import RESIDUAL, Activation, Layer, MLPConfig
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.space import Space
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight, check_names, map_weights

ACTIVATIONS: Mapping[Activation, Callable[[], AbstractModule]] = {
    "relu": ReLU,
    "gelu": GELU,
    "tanh": Tanh,
    "maxmin": GroupSort,
    "groupsort": lambda: GroupSort(group=8),
    "identity": Identity,
}


class MLP(AbstractModule):
    """Flatten → (Linear → activation)* → Linear → scale.

    Every matrix has mass 1 in the modular norm, so of M matrices (biases included) each has the share 1/M, divided by
    the constant factors after it: the final scale, and α for a matrix on a residual branch.

    **Arguments:**

    - `in_size`, `width`, `out_size`, `depth`: `depth` ≥ 1 matrices, in_size → width → … → width → out_size.
    - `activation`: one of `ACTIVATIONS`.
    - `bias`: whether layers add a bias (first zero).
    - `residual`: α of a convex residual around each width → width layer; 0 for none.
    - `potential`: c of x - (2/c²)Wᵀφ(Wx + b) around each width → width layer, which is 1-Lipschitz for ‖W‖ ≤ c; 0 for
      none.
    - `final_scale`: the factor on the logits.
    - `zero_init`: whether the last matrix starts at zero; all others start semi-orthogonal with norm min(1, cap).
    - `layer`: whether matrices are `plain`, or computed so that every layer is 1-Lipschitz by itself
      (`lipzoo.layers.reparametrized`); those start orthogonal, and no cap acts on them. `cpl` and `sll` are residual,
      between a first `aol`, without an activation, and a last one; `sandwich` stands before a last `cayley`.
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
        potential: float = 0.0,
        layer: Layer = "plain",
        cap: float = math.inf,
        key: PRNGKeyArray,
    ):
        if min(in_size, width, out_size, depth) < 1:
            sizes = f"{in_size}, {width}, {out_size}, depth={depth}"
            raise ValueError(f"an MLP needs sizes and a depth of at least 1, but was given {sizes}")
        config = MLPConfig(depth, width, activation, bias, residual, final_scale, zero_init, potential, layer)
        if refusal := field_refusal(config) or config.conflict():
            raise ValueError(f"there is no such MLP: {refusal}")
        check_cap(cap)
        sizes = [in_size, *[width] * (depth - 1), out_size]
        share = 1 / (depth * (2 if bias else 1)) / final_scale
        layers: list[AbstractModule] = [Flatten()]
        for index, layer_key in enumerate(jax.random.split(key, depth)):
            last = index == depth - 1
            inner = 0 < index < depth - 1
            block = _block(
                config,
                index,
                (sizes[index + 1], sizes[index]),
                name="head" if last else f"layers.{index}",
                share=share / (config.branch if inner else 1.0),
                zero=zero_init and last,
                cap=cap,
                key=layer_key,
            )
            layers.append(ConvexResidual(block, residual) if inner and residual else block)
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


def _block(
    config: MLPConfig,
    index: int,
    sizes: tuple[int, int],
    *,
    name: str,
    share: float,
    zero: bool,
    cap: float,
    key: PRNGKeyArray,
) -> AbstractModule:
    """The matrix at a place, of sizes (out, in), and an activation after it or inside, unless there is none."""
    kind, last = config.kind_of(index), index == config.depth - 1
    bare = last or (index == 0 and config.layer in RESIDUAL)
    activation = None if bare else ACTIVATIONS[config.activation]()
    if kind in ACTIVE and activation is not None:
        made = REPARAMETRIZED[kind](*sizes, name=name, share=share, key=key, bias=config.bias, activation=activation)
        return _capped(made, cap)
    if kind != "plain":
        linear = _capped(REPARAMETRIZED[kind](*sizes, name=name, share=share, key=key, bias=config.bias), cap)
        return linear if activation is None else Sequential([linear, activation])
    linear = _linear(key, *sizes, name=name, share=share, bias=config.bias, zero=zero, cap=cap)
    if activation is not None and index and config.potential:
        return PotentialResidual(linear, activation, 2 / config.potential**2)
    return linear if activation is None else Sequential([linear, activation])


def _capped(module: AbstractModule, cap: float) -> AbstractModule:
    """With the cap on what has one, a bias."""
    return map_weights(lambda w: dataclasses.replace(w, cap=cap) if w.geometry.bounded else w, module)


def _linear(
    key: PRNGKeyArray, out_size: int, in_size: int, *, name: str, share: float, bias: bool, zero: bool, cap: float
) -> Linear:
    place, init = ("head" if name == "head" else "hidden"), ("zero" if zero else "orthogonal")
    matrix = fresh(key, (out_size, in_size), name=name, place=place, cap=cap, share=share, init=init)
    column = Weight(jnp.zeros((out_size, 1), jnp.float32), f"{name}.bias", COLUMN, cap, share) if bias else None
    return Linear(matrix, column)


def build_mlp(config: MLPConfig, sizes: Sizes, *, key: PRNGKeyArray) -> MLP:
    """The model with fresh weights, all of them free."""
    return MLP(sizes.inputs, out_size=sizes.classes, key=key, **dataclasses.asdict(config))
