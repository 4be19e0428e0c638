"""A model as a PyTorch module, with the same logits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import ConvexResidual, Sequential
from lipzoo.layers.image import ChannelsLast, Patches, Shift
from lipzoo.layers.linear import Linear, Pointwise, Scale
from lipzoo.layers.stack import Stack
from lipzoo.models.gpt import GPT
from lipzoo.models.mlp import ACTIVATIONS, MLP
from lipzoo.models.shiftnet import ACTIVATIONS as SHIFTNET_ACTIVATIONS
from lipzoo.models.shiftnet import ShiftNet
from lipzoo.theory.weight import weights
from lipzoo.train.load import Loaded

if TYPE_CHECKING:
    from torch import nn  # pyright: ignore[reportMissingImports]


def to_torch(model: Any) -> "nn.Module":
    """The module of `lipzoo/interop/torch_models.py` that computes what this model does, in evaluation mode.

    `model` is an MLP, a GPT or a ShiftNet, or what `lipzoo.load` returns. The module takes an input without a batch, as
    the model does; models of images take batches, too, of flat ones. It holds copies, and its `state_dict()` has
    torch's usual names.

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

    tensors = {weight.name: torch.tensor(np.asarray(weight.array)) for weight in weights(model)}
    return torch_models.build(CONFIGS[type(model)](model), tensors)


def _mlp(model: MLP) -> dict[str, Any]:
    """The options that an MLP was built by, from its parts. Raises TypeError if one is of another kind."""
    _, *layers = model.body.layers
    factor = 1.0
    if isinstance(layers[-1], Scale):
        factor, layers = layers[-1].factor, layers[:-1]
    *hidden, head = layers
    alphas = {layer.alpha for layer in hidden if isinstance(layer, ConvexResidual)}
    blocks = [layer.branch if isinstance(layer, ConvexResidual) else layer for layer in hidden]
    acts = {block.layers[1] for block in blocks if _plain(block)}  # pyright: ignore[reportAttributeAccessIssue]
    if type(head) is not Linear or not all(map(_plain, blocks)) or len(acts) > 1 or len(alphas) > 1:
        raise TypeError("to_torch knows MLPs of plain matrices, and of no other layers")
    names = [name for name, make in ACTIVATIONS.items() if make() in acts]
    return {
        "kind": "mlp",
        "depth": len(layers),
        "bias": head.bias is not None,
        "activation": names[0] if names else "identity",
        "residual": alphas.pop() if alphas else 0.0,
        "final_scale": factor,
    }


def _plain(block: AbstractModule) -> bool:
    """Whether it is a matrix and an activation."""
    return type(block) is Sequential and len(block.layers) == 2 and type(block.layers[0]) is Linear


def _shiftnet(model: ShiftNet) -> dict[str, Any]:
    """The options that a ShiftNet was built by, from its parts."""
    image, patches, stem, stack, *_ = model.body.layers
    assert isinstance(image, ChannelsLast)
    assert isinstance(patches, Patches)
    assert isinstance(stem, Pointwise)
    assert isinstance(stack, Stack)
    assert isinstance(stack.blocks, Sequential)
    shift, _, act = stack.blocks.layers
    assert isinstance(shift, Shift)
    if image.height != image.width:
        raise ValueError(f"to_torch knows square images, and none of {image.height}×{image.width} pixels")
    return {
        "kind": "shiftnet",
        "patch": patches.size,
        "bias": stem.bias is not None,
        "shift": shift.fraction,
        "border": shift.border,
        "activation": next(name for name, make in SHIFTNET_ACTIVATIONS.items() if make() == act),
    }


def _gpt(model: GPT) -> dict[str, Any]:
    return {"kind": "gpt", **dataclasses.asdict(model.config)}


CONFIGS: Mapping[type, Callable[[Any], dict[str, Any]]] = {MLP: _mlp, GPT: _gpt, ShiftNet: _shiftnet}
"""By types of models: their options, as recipes name them. A family that is added here needs a class in `FAMILIES` of
`lipzoo/interop/torch_models.py`."""
