"""Layers of PyTorch as layers of this library: told by the names of their classes, so that torch is not imported."""

from typing import Any

import numpy as np

from lipzoo.interop import parts
from lipzoo.interop.of_equinox import joined
from lipzoo.interop.unknown import place, unknown
from lipzoo.layers.activation import GELU, Identity, ReLU, Tanh
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.linear import Flatten

HOME = "torch.nn.modules."
SMALLEST_STEP = {"float32": 2.0**-23, "float64": 2.0**-52}
"""What RMSNorm takes for ε where none is given."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def of_torch(layer: Any, name: str) -> list[AbstractModule] | None:
    """The layers of this library that compute what one of PyTorch does; None if it is none.

    Classes are known by name and home: a subclass may compute anything, and so may what has a forward of its own or
    hooks around it, as spectral_norm puts them.
    """
    kinds = {
        "Linear": lambda layer, name: [parts.linear(_numpy(layer.weight), _numpy(layer.bias), name)],
        "Sequential": lambda layer, name: joined(layer, name, of_torch),
        "LayerNorm": _norm,
        "RMSNorm": _norm,
        "ReLU": lambda layer, name: [ReLU()],
        "GELU": lambda layer, name: [GELU(1.0, exact=layer.approximate == "none")],
        "Tanh": lambda layer, name: [Tanh()],
        "Identity": lambda layer, name: [Identity()],
        "Dropout": _dropout,
        "Flatten": _flatten,
    }
    kind = type(layer)
    if not any(base.__module__.startswith("torch.") for base in kind.__mro__):
        return None
    if not kind.__module__.startswith(HOME) or kind.__qualname__ not in kinds:
        raise unknown(layer, name)
    if "forward" in vars(layer) or any(getattr(layer, hooks, None) for hooks in HOOKS):
        raise ValueError(f"{place(name)} is a {kind.__qualname__} that was changed by hooks: remove them")
    return kinds[kind.__qualname__](layer, name)


def _numpy(parameter: Any) -> np.ndarray | None:
    """A copy, which later training does not change. Raises ValueError for types that NumPy does not have."""
    if parameter is None:
        return None
    try:
        return np.array(parameter.detach().cpu().numpy())
    except TypeError as error:
        raise ValueError(f"a parameter holds {parameter.dtype}: turn the network into float32 first") from error


def _norm(layer: Any, name: str) -> list[AbstractModule]:
    gain, bias, epsilon = _numpy(layer.weight), _numpy(getattr(layer, "bias", None)), layer.eps
    if epsilon is None:
        epsilon = SMALLEST_STEP["float32" if gain is None else gain.dtype.name]
    kind = type(layer).__qualname__
    return [parts.normalization(kind, tuple(layer.normalized_shape), float(epsilon), gain, bias, name)]


def _dropout(layer: Any, name: str) -> list[AbstractModule]:
    if layer.p and layer.training:
        raise ValueError(f"{place(name)} is a Dropout that drops: call .eval() on the network")
    return [Identity()]


def _flatten(layer: Any, name: str) -> list[AbstractModule]:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ValueError(f"{place(name)} is a Flatten of some axes: from_layers takes that of all but the batch")
    return [Flatten()]
