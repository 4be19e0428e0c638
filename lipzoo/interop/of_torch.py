"""Layers of PyTorch as layers of this library: told by the names of their classes, so that torch is not imported."""

from typing import Any

import numpy as np

from lipzoo.interop import images, parts
from lipzoo.interop.of_equinox import joined
from lipzoo.interop.place import Place, unknown
from lipzoo.layers.activation import GELU, Identity, ReLU, Tanh
from lipzoo.layers.base import AbstractModule

HOME = "torch.nn.modules."
SMALLEST_STEP = {"float32": 2.0**-23, "float64": 2.0**-52}
"""What RMSNorm takes for ε where none is given."""
DROPOUTS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def of_torch(layer: Any, place: Place) -> list[AbstractModule] | None:
    """The layers of this library that compute what one of PyTorch does; None if it is none.

    Classes are known by name and home: a subclass may compute anything, and so may what has a forward of its own or
    hooks around it, as spectral_norm puts them.
    """
    kinds = {
        "Linear": lambda layer, place: [parts.linear(_numpy(layer.weight), _numpy(layer.bias), place)],
        "Conv2d": _convolution,
        "AvgPool2d": _pool,
        "MaxPool2d": _pool,
        "Sequential": lambda layer, place: joined(layer, place, of_torch),
        "LayerNorm": _norm,
        "RMSNorm": _norm,
        "BatchNorm1d": _batch_norm,
        "BatchNorm2d": _batch_norm,
        "ReLU": lambda layer, place: [ReLU()],
        "GELU": lambda layer, place: [GELU(1.0, exact=layer.approximate == "none")],
        "Tanh": lambda layer, place: [Tanh()],
        "Identity": lambda layer, place: [Identity()],
        **dict.fromkeys(DROPOUTS, _dropout),
        "Flatten": _flatten,
    }
    kind = type(layer)
    if not any(base.__module__.startswith("torch.") for base in kind.__mro__):
        return None
    if not kind.__module__.startswith(HOME) or kind.__qualname__ not in kinds:
        raise unknown(layer, place)
    if "forward" in vars(layer) or any(getattr(layer, hooks, None) for hooks in HOOKS):
        raise ValueError(f"{place} is a {kind.__qualname__} that was changed by hooks: remove them")
    return kinds[kind.__qualname__](layer, place)


def _numpy(parameter: Any) -> np.ndarray | None:
    """A copy, which later training does not change. Raises ValueError for types that NumPy does not have."""
    if parameter is None:
        return None
    try:
        return np.array(parameter.detach().cpu().numpy())
    except TypeError as error:
        raise ValueError(f"a parameter holds {parameter.dtype}: turn the network into float32 first") from error


def _convolution(layer: Any, place: Place) -> list[AbstractModule]:
    kernel, pads = _numpy(layer.weight), layer.padding
    assert kernel is not None
    if isinstance(pads, str):  # What cannot be divided by two stands at the end.
        totals = [size - 1 if pads == "same" else 0 for size in kernel.shape[-2:]]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((pad, pad) for pad in pads)
    options = images.Options(layer.stride, layer.dilation, layer.groups, pads, layer.padding_mode.upper())  # pyright: ignore[reportArgumentType]
    return images.convolution(kernel, _numpy(layer.bias), options, place)


def _pool(layer: Any, place: Place) -> list[AbstractModule]:
    kind, window, stride = type(layer).__qualname__, _pair(layer.kernel_size), _pair(layer.stride)
    if kind == "AvgPool2d" and layer.divisor_override is not None:
        raise ValueError(f"{place} is an AvgPool2d with divisor_override: from_layers takes means")
    if kind == "MaxPool2d" and (layer.return_indices or _pair(layer.dilation) != (1, 1)):
        raise ValueError(f"{place} is a MaxPool2d with dilation or return_indices: from_layers takes neither")
    return images.pool(kind, window, stride, _pair(layer.padding), layer.ceil_mode, place)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # pyright: ignore[reportReturnType]


def _norm(layer: Any, place: Place) -> list[AbstractModule]:
    gain, bias, epsilon = _numpy(layer.weight), _numpy(getattr(layer, "bias", None)), layer.eps
    if epsilon is None:
        epsilon = SMALLEST_STEP["float32" if gain is None else gain.dtype.name]
    kind = type(layer).__qualname__
    return [parts.normalization(kind, tuple(layer.normalized_shape), float(epsilon), gain, bias, place)]


def _batch_norm(layer: Any, place: Place) -> list[AbstractModule]:
    """An affine map of channels, by the statistics that were counted while it was trained."""
    kind = type(layer).__qualname__
    if kind == "BatchNorm2d":
        place.image(kind)
    else:
        place.check_vector(kind)
    if layer.training or layer.running_mean is None:
        how = "takes the statistics of batches: train it with running ones, and call .eval() on the network"
        raise ValueError(f"{place} is a {kind} that {how}")
    mean, variance = _numpy(layer.running_mean), _numpy(layer.running_var)
    gain, bias = _numpy(layer.weight), _numpy(layer.bias)
    return [images.batch_norm(mean, variance, float(layer.eps), gain, bias, place)]


def _dropout(layer: Any, place: Place) -> list[AbstractModule]:
    if layer.p and layer.training:
        raise ValueError(f"{place} is a {type(layer).__qualname__} that drops: call .eval() on the network")
    return [Identity()]


def _flatten(layer: Any, place: Place) -> list[AbstractModule]:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ValueError(f"{place} is a Flatten of some axes: from_layers takes that of all but the batch")
    return images.flatten(place)
