"""A model as a PyTorch module, with the same logits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lipzoo.layers.compose import ConvexResidual, Sequential
from lipzoo.layers.linear import Linear, Scale
from lipzoo.models.gpt import GPT
from lipzoo.models.mlp import ACTIVATIONS, MLP
from lipzoo.theory.weight import weights
from lipzoo.train.load import Loaded

if TYPE_CHECKING:
    from torch import nn  # pyright: ignore[reportMissingImports]


def to_torch(model: Any) -> "nn.Module":
    """The module of `lipzoo/interop/torch_models.py` that computes what this model does, in evaluation mode.

    `model` is an MLP or a GPT, or what `lipzoo.load` returns. The module takes an input without a batch, as the model
    does; an MLP takes batches, too, of flat images. It holds copies, and its `state_dict()` has torch's usual names.

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
    """The options that an MLP was built by, from its parts."""
    _, *layers = model.body.layers
    factor = 1.0
    if isinstance(layers[-1], Scale):
        factor, layers = layers[-1].factor, layers[:-1]
    residuals = [layer for layer in layers if isinstance(layer, ConvexResidual)]
    hidden = [layer.branch if isinstance(layer, ConvexResidual) else layer for layer in layers[:-1]]
    acts = [layer.layers[1] for layer in hidden if isinstance(layer, Sequential)]
    head = layers[-1]
    assert isinstance(head, Linear)
    return {
        "kind": "mlp",
        "depth": len(layers),
        "bias": head.bias is not None,
        "activation": next((name for name, make in ACTIVATIONS.items() if acts and make() == acts[0]), "identity"),
        "residual": residuals[0].alpha if residuals else 0.0,
        "final_scale": factor,
    }


def _gpt(model: GPT) -> dict[str, Any]:
    return {"kind": "gpt", **dataclasses.asdict(model.config)}


CONFIGS: Mapping[type, Callable[[Any], dict[str, Any]]] = {MLP: _mlp, GPT: _gpt}
"""By types of models: their options, as recipes name them. A family that is added here needs a class in `FAMILIES` of
`lipzoo/interop/torch_models.py`."""
