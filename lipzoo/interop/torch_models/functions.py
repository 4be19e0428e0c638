"""Activations, and how images lie, in plain PyTorch."""

from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

FUNCTIONS = {
    "relu": nn.functional.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "relu2": lambda x: nn.functional.relu(x) ** 2,
    "abs": lambda x: torch.cat([(half := x.tensor_split(2, -1))[0].abs(), half[1]], -1),
    "maxmin": lambda x: x.unflatten(-1, (-1, 2)).sort(dim=-1).values.flatten(-2),
    "groupsort": lambda x: x.unflatten(-1, (-1, 8)).sort(dim=-1).values.flatten(-2),
}
"""Activations by their names in recipes."""


def activation(name: str, divisor: float = 1.129) -> Callable[[Tensor], Tensor]:
    """A function by its name; GELU is divided by a constant."""
    if name == "gelu":
        return lambda x: nn.functional.gelu(x, approximate="tanh") / divisor
    return FUNCTIONS[name]


def pixels(x: Tensor, channels: int, side: int) -> Tensor:
    """Square images (batch, side, side, channels) from flat ones, whose channels come first."""
    return x.reshape(-1, channels, side, side).movedim(1, -1)


def patches(x: Tensor, size: int) -> Tensor:
    """Squares of pixels as the channels of one: (batch, h, w, c) → (batch, h/p, w/p, p²c)."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // size, size, width // size, size, channels)
    return squares.transpose(2, 3).flatten(3)
