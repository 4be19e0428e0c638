"""What PyTorch is told of an MLP: its options, and its matrices, those that are computed among them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import ConvexResidual, Sequential
from lipzoo.layers.linear import Linear, Scale
from lipzoo.layers.potential import PotentialResidual
from lipzoo.layers.reparametrized.base import Potential, UnitLinear, matrix
from lipzoo.layers.reparametrized.sandwich import Sandwich
from lipzoo.models.mlp import ACTIVATIONS, MLP
from lipzoo.theory.geometry import Raw
from lipzoo.theory.weight import Weight

Matrix = Float[np.ndarray, "out in"]


class Layer(NamedTuple):
    """A layer, and what it does: `residual` is its α, `potential` its c; `after` is a matrix behind the activation."""

    weight: Matrix
    bias: Weight | None
    activation: AbstractModule | None = None
    residual: float = 0.0
    potential: float = 0.0
    after: Matrix | None = None


def mlp(model: MLP) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The options and arrays of an MLP, from its parts. Matrices that are computed are so in float64, and rounded once.

    A sandwich layer is two matrices, the second of which is multiplied with the next layer's.

    **Raises:** TypeError if a part is of another kind.
    """
    _, *layers = model.body.layers
    factor = 1.0
    if isinstance(layers[-1], Scale):
        factor, layers = layers[-1].factor, layers[:-1]
    *hidden, head = [_layer(layer) for layer in layers]
    acts = [layer.activation for layer in hidden if layer.activation is not None]
    inner = {(layer.residual, layer.potential, layer.activation is None) for layer in hidden[1:]}
    residual, potential, bare = inner.pop() if inner else (0.0, 0.0, False)
    merged = any(layer.after is not None for layer in hidden)
    if head[2:] != (None, 0.0, 0.0, None) or inner or bare or any(act != acts[0] for act in acts):
        raise _unknown()
    if residual and merged:
        raise TypeError("to_torch knows sandwich layers that are not residual")
    names = [name for name, make in ACTIVATIONS.items() if acts and make() == acts[0]]
    config = {
        "kind": "mlp",
        "depth": len(layers),
        "bias": head.bias is not None,
        "activation": names[0] if names else "identity",
        "residual": residual,
        "potential": potential,
        "bare_first": bool(hidden) and hidden[0].activation is None,
        "final_scale": factor,
    }
    return config, _arrays([*hidden, head])


def _unknown() -> TypeError:
    return TypeError("to_torch knows MLPs of matrices and activations, and of no other layers")


def _layer(block: AbstractModule) -> Layer:
    kind = type(block)
    if isinstance(block, Linear | UnitLinear) and kind in (Linear, UnitLinear):
        array = _effective(block.weight)
        out_size, in_size = array.shape
        return Layer(array * math.sqrt(out_size / in_size) if kind is UnitLinear else array, block.bias)
    if isinstance(block, Sequential) and len(block.layers) == 2 and type(block.layers[0]) in (Linear, UnitLinear):
        return _layer(block.layers[0])._replace(activation=block.layers[1])
    if isinstance(block, ConvexResidual) and not isinstance(block.branch, ConvexResidual):
        return _layer(block.branch)._replace(residual=block.alpha)
    if isinstance(block, PotentialResidual) and isinstance(block.inner, Linear):
        return _layer(block.inner)._replace(activation=block.activation, potential=math.sqrt(2 / block.step))
    if isinstance(block, Potential):
        return Layer(_effective(block.weight), block.bias, block.activation, potential=1.0)
    if isinstance(block, Sandwich):
        q = math.sqrt(2) * _effective(block.weight)
        out_size, in_size = len(q), q.shape[1] - len(q)
        first = math.sqrt(out_size / in_size) * q[:, out_size:]
        return Layer(first, block.bias, block.activation, after=q[:, :out_size].T)
    raise _unknown()


def _effective(weight: Weight) -> Matrix:
    """The matrix that is computed with, in float64 where it is computed."""
    array = np.asarray(weight.array)
    if not isinstance(weight.geometry, Raw):
        return array
    with jax.enable_x64(True):
        return np.asarray(matrix(weight.with_array(jnp.asarray(array, jnp.float64))))


def _arrays(layers: list[Layer]) -> dict[str, np.ndarray]:
    """By the names that weights have."""
    found, before = {}, None
    for index, layer in enumerate(layers):
        name = "head" if index == len(layers) - 1 else f"layers.{index}"
        array = layer.weight if before is None else layer.weight.astype(np.float64) @ before
        found[name], before = array.astype(np.float32), layer.after
        if layer.bias is not None:
            found[f"{name}.bias"] = np.asarray(layer.bias.array)
    return found
