"""The models of lipzoo in plain PyTorch: this folder can be copied, and needs torch and safetensors alone.

model = load("model.safetensors")  # written by `lipzoo export`
logits = model(images)             # (…, pixels), in [0, 1], channels first; of a GPT: whole numbers, (time,)
"""

import json

from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from .gpt import GPT
from .images import ConvNet, ShiftNet, ViT
from .mlp import MLP
from .state import of_convnet, of_vit, state_of

FAMILIES = {"mlp": MLP, "gpt": GPT, "shiftnet": ShiftNet, "convnet": ConvNet, "vit": ViT}
"""By the `kind` of a recipe's model: what is called with its configuration and the state, and loads that."""
STATES = {"convnet": of_convnet, "vit": of_vit}
"""What changes the state of some of them."""


def build(config: dict, tensors: dict[str, Tensor]) -> nn.Module:
    """The module of a recipe's model with these weights, to evaluate. Raises ValueError if there is no code for it."""
    kind, layer = config["kind"], config.get("layer", "plain")
    if kind not in FAMILIES:
        raise ValueError(f"there is no PyTorch code for models of the family {kind!r}")
    if layer != "plain":
        raise ValueError(
            f"there is no PyTorch code for layers {layer!r}: lipzoo.to_torch(model) computes their matrices"
        )
    state = state_of(tensors)
    state = STATES[kind](state, config) if kind in STATES else state
    model = FAMILIES[kind](config, state)
    model.load_state_dict(state)
    return model.eval()


def load(path: str) -> nn.Module:
    """The module of a file of `lipzoo export`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors, recipe = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["recipe"]  # noqa: SIM118
    return build(json.loads(recipe)["model"], tensors)
