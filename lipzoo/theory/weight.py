"""The one type of a constrained matrix, and maps over all of a model's matrices."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from lipzoo.theory.geometry import DENSE, Geometry
from lipzoo.theory.numbers import Scalar

Place = Literal["hidden", "head", "embedding"]
Tree = TypeVar("Tree")
if TYPE_CHECKING:
    Stored = Array
else:  # Certificates cut weights up as NumPy arrays, and recipes look at shapes alone.
    Stored = Array | np.ndarray | jax.ShapeDtypeStruct


class Weight(eqx.Module):
    """A matrix that a model holds under a norm cap.

    Everything that differs from matrix to matrix stands here, so that optimizers, constraints, norm curves and
    certificates are tree maps over `Weight`s.

    **Attributes:**

    - `array`: float, shape (..., out, in).
    - `name`: unique in its model; the row of the certificate and the key of per-layer overrides.
    - `geometry`: how the array is a family of matrices (`lipzoo.theory.geometry`).
    - `cap`: the RMS→RMS norm that constraints hold it under; infinite if it is free.
    - `share`: the fraction of the learning rate that it gets (modular norm, Large et al. 2024, arXiv 2405.14813).
    - `place`: where it stands in the network.
    """

    array: Float[Stored, "*batch out in"]
    name: str = eqx.field(static=True)
    geometry: Geometry = eqx.field(static=True, default=DENSE)
    cap: float = eqx.field(static=True, default=float("inf"))
    share: float = eqx.field(static=True, default=1.0)
    place: Place = eqx.field(static=True, default="hidden")

    def __check_init__(self) -> None:
        if not isinstance(self.geometry, Geometry):
            kinds = "DENSE, COLUMN, ROWS, ENTRIES or OFFSETS of lipzoo.theory.geometry"
            raise ValueError(f"the geometry of {self.name} must be one such as {kinds}, got {self.geometry!r}")

    @property
    def rms_factor(self) -> float:
        """√(in/out): a spectral norm times this is an RMS→RMS norm."""
        return self.geometry.rms_factor(self.array.shape)

    def with_array(self, array: Any) -> "Weight":
        """This weight with another array (or what stands for one: a shape, a gradient)."""
        return eqx.tree_at(lambda w: w.array, self, array, is_leaf=lambda x: x is None)


@runtime_checkable
class Projection(Protocol):
    """What can bring a weight under its cap (`lipzoo.constraints`)."""

    def apply(self, weight: Weight, step: Any = None) -> Weight:
        """The weight constrained, as after an optimizer step `step`."""
        ...


Measure = Callable[[Weight], Scalar]
"""How norms are measured: the RMS→RMS norm of each matrix of a weight, or an upper bound of it, in the shape of the
leading axes. One `bound` method serves every measure."""


def cap_norm(weight: Weight) -> Scalar:
    """The cap: gives the a-priori bound, which holds as long as every cap does."""
    return np.full(np.shape(weight.array)[:-2], weight.cap)[()]


def exact_norm(weight: Weight) -> Scalar:
    """The RMS→RMS norm in float64, rounded up: gives the certified bound (see `lipzoo.theory.norms.rms_norm`)."""
    return weight.geometry.exact_norm(np.asarray(weight.array))[()]


def gram_norm(weight: Weight) -> Float[Array, "*batch"]:
    """An upper bound of the norm by Gram iteration: for use inside jit, differentiable."""
    return weight.geometry.gram_norm(weight.array)


def is_weight(node: Any) -> bool:
    return isinstance(node, Weight)


def weights(tree: Any) -> list[Weight]:
    """All weights of a model, in the order of its fields."""
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_weight) if is_weight(leaf)]


def map_weights(function: Callable[..., Any], tree: Tree, *rest: Any) -> Tree:
    """`tree` with every weight replaced by `function(weight, *matching weights of rest)`."""

    def apply(node: Any, *others: Any) -> Any:
        return function(node, *others) if is_weight(node) else node

    return jax.tree.map(apply, tree, *rest, is_leaf=is_weight)


def set_caps(tree: Tree, caps: Mapping[str, float]) -> Tree:
    """`tree` with the caps of the named weights replaced; the arrays stay as they are (`project` brings them under)."""
    unknown = set(caps) - {weight.name for weight in weights(tree)}
    if unknown:
        raise ValueError(f"no weight is called {', '.join(sorted(unknown))}")
    return map_weights(lambda w: dataclasses.replace(w, cap=caps.get(w.name, w.cap)), tree)


def bare(tree: Tree) -> Tree:
    """`tree` with every weight free and of share 1: what compiled steps see, which take both as arguments.

    Caps and shares are part of a model's structure, by which jit tells what it has compiled.
    """
    return map_weights(lambda w: dataclasses.replace(w, cap=float("inf"), share=1.0), tree)


def filled(like: Tree, tree: Any) -> Tree:
    """`like`, with its caps and shares, holding the arrays of `tree`."""
    return map_weights(lambda w, other: w.with_array(other.array), like, tree)


def check_names(tree: Any) -> Sequence[str]:
    """The weights' names; they must be unique, since overrides and checkpoints go by them."""
    names = [weight.name for weight in weights(tree)]
    if len(set(names)) != len(names):
        raise ValueError(f"weights must have unique names, got {names}")
    return names
