"""A model as a PyTorch module, with the same logits."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lipzoo.interop.mlp_to_torch import mlp
from lipzoo.layers.activation import GELU
from lipzoo.layers.attention import Attention
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import ConvexResidual, PerToken, Sequential
from lipzoo.layers.convolution import Conv2d
from lipzoo.layers.image import ChannelsLast, Patches, Shift
from lipzoo.layers.linear import Pointwise
from lipzoo.layers.pooling import AveragePool
from lipzoo.layers.potential import PotentialResidual
from lipzoo.layers.stack import Stack
from lipzoo.models.convnet import ConvNet
from lipzoo.models.convnet_config import ACTIVATIONS as CONVNET_ACTIVATIONS
from lipzoo.models.gpt import GPT
from lipzoo.models.mlp import MLP
from lipzoo.models.shiftnet import ACTIVATIONS as SHIFTNET_ACTIVATIONS
from lipzoo.models.shiftnet import ShiftNet
from lipzoo.models.vit import ViT
from lipzoo.theory.weight import weights
from lipzoo.train.load import Loaded

if TYPE_CHECKING:
    from torch import nn  # pyright: ignore[reportMissingImports]

Options = dict[str, Any]
Part = TypeVar("Part", bound=AbstractModule)


def to_torch(model: Any) -> "nn.Module":
    """The module of `lipzoo/interop/torch_models` that computes what this model does, in evaluation mode.

    `model` is an MLP, a GPT, a ShiftNet, a ConvNet or a ViT, or what `lipzoo.load` returns. The module takes an input
    without a batch, as the model does; models of images take batches, too, of flat ones. It holds copies, and its
    `state_dict()` has torch's usual names. Matrices that a model computes from other numbers are held as they are.

    **Raises:** ImportError where PyTorch is not installed; TypeError if it is another kind of model.
    """
    model = model.model if isinstance(model, Loaded) else model
    if type(model) not in CONFIGS:
        known = ", ".join(kind.__name__ for kind in CONFIGS)
        raise TypeError(f"to_torch knows {known}, and no {type(model).__name__}")
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("to_torch needs PyTorch: pip install torch") from error
    from lipzoo.interop import torch_models

    config, arrays = CONFIGS[type(model)](model)
    return torch_models.build(config, {name: torch.tensor(array) for name, array in arrays.items()})


def _as_they_are(options: Callable[[Any], Options]) -> Callable[[Any], tuple[Options, dict[str, np.ndarray]]]:
    """Options with the arrays of all weights."""
    return lambda model: (options(model), {weight.name: np.asarray(weight.array) for weight in weights(model)})


def _first(kind: type[Part], layers: Iterable[AbstractModule]) -> Part:
    return next(layer for layer in layers if isinstance(layer, kind))


def _squares(layers: Iterable[AbstractModule]) -> int:
    """The side of a patch. Raises ValueError unless images are square, as torch_models takes them to be."""
    image = _first(ChannelsLast, layers)
    if image.height != image.width:
        raise ValueError(f"to_torch knows square images, and none of {image.height}×{image.width} pixels")
    return _first(Patches, layers).size


def _blocks(layers: Iterable[AbstractModule]) -> AbstractModule:
    return _first(Stack, layers).blocks


def _shiftnet(model: ShiftNet) -> Options:
    """The options that a ShiftNet was built by, from its parts."""
    layers, block = model.body.layers, _blocks(model.body.layers)
    assert isinstance(block, Sequential)
    shift = _first(Shift, block.layers)
    return {
        "kind": "shiftnet",
        "patch": _squares(layers),
        "bias": _first(Pointwise, layers).bias is not None,
        "shift": shift.fraction,
        "border": shift.border,
        "activation": next(name for name, make in SHIFTNET_ACTIVATIONS.items() if make() == block.layers[-1]),
    }


def _convnet(model: ConvNet) -> Options:
    """The options that a ConvNet was built by, from its parts."""
    layers, block, residual = model.body.layers, _blocks(model.body.layers), {"residual": "none"}
    if isinstance(block, PotentialResidual):
        residual = {"residual": "potential", "potential_cap": (2 / block.step) ** 0.5}
        parts = (block.inner, block.activation)
    elif isinstance(block, ConvexResidual):
        residual = {"residual": "convex", "alpha": block.alpha}
        parts = block.branch.layers  # pyright: ignore[reportAttributeAccessIssue]
    else:
        parts = block.layers  # pyright: ignore[reportAttributeAccessIssue]
    geometry = _first(Conv2d, parts).geometry
    stacks = [layer for layer in layers if isinstance(layer, Stack)]
    return {
        "kind": "convnet",
        "patch": _squares(layers),
        "stages": len(stacks),
        "depth": stacks[0].depth,
        "bias": _first(Pointwise, layers).bias is not None,
        "kernel": geometry.kernel,
        "border": geometry.padding,
        "down": "average" if any(isinstance(layer, AveragePool) for layer in layers) else "patches",
        "activation": next(name for name, make in CONVNET_ACTIVATIONS.items() if make() == parts[-1]),
        **residual,
    }


def _vit(model: ViT) -> Options:
    """The options that a ViT was built by, from its parts."""
    layers = model.body.layers
    stack = _first(Stack, layers)
    assert isinstance(stack.blocks, Sequential)
    first, second = stack.blocks.layers
    assert isinstance(first, ConvexResidual)
    assert isinstance(second, ConvexResidual)
    assert isinstance(first.branch, Attention)
    assert isinstance(second.branch, PerToken)
    act = second.branch.module.layers[1]  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "kind": "vit",
        "patch": _squares(layers),
        "depth": stack.depth,
        "heads": first.branch.heads,
        "softmax_scale": first.branch.softmax_scale,
        "attention_scale": first.branch.output_scale,
        "residual_scale": first.alpha * 2 * stack.depth,
        "activation": "gelu" if isinstance(act, GELU) else "maxmin",
    }


def _gpt(model: GPT) -> Options:
    return {"kind": "gpt", **dataclasses.asdict(model.config)}


CONFIGS: Mapping[type, Callable[[Any], tuple[Options, dict[str, np.ndarray]]]] = {
    MLP: mlp,
    GPT: _as_they_are(_gpt),
    ShiftNet: _as_they_are(_shiftnet),
    ConvNet: _as_they_are(_convnet),
    ViT: _as_they_are(_vit),
}
"""By types of models: their options, as recipes name them, and arrays. A family that is added here needs a class in
`FAMILIES` of `lipzoo/interop/torch_models`."""
