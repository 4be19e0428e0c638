"""Networks of images in plain PyTorch: of shifts, of convolutions, and of attention. Images are square."""

import math

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from .functions import activation, patches, pixels
from .gpt import Block


class ShiftNet(nn.Module):
    """Patches → matrix → (some channels move by a pixel → matrix → activation)* → matrix, for square images."""

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        (width, inner), (classes, entries) = state["stem.weight"].shape, state["head.weight"].shape
        self.patch, self.rows, bias = config["patch"], math.isqrt(entries // width), config["bias"]
        self.act, self.wrap = activation(config["activation"]), config["border"] == "circular"
        self.moved, depth = round(width * config["shift"]) // 4, sum(name.endswith("mix.weight") for name in state)
        self.stem, self.head = nn.Linear(inner, width, bias=bias), nn.Linear(entries, classes, bias=False)
        blocks = (nn.ModuleDict({"mix": nn.Linear(width, width, bias=bias)}) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        image = pixels(x, self.stem.in_features // self.patch**2, self.rows * self.patch)
        y = self.stem(patches(image, self.patch))
        for block in self.blocks:
            y = self.act(block["mix"](self.shift(y)))
        return self.head(y.flatten(1)).reshape(*x.shape[:-1], -1)

    def shift(self, x: Tensor) -> Tensor:
        still, *parts = x.split([x.shape[-1] - 4 * self.moved, *[self.moved] * 4], dim=-1)
        moves = ((1, 1), (1, -1), (2, 1), (2, -1))  # Down, up, right, left.
        moved = [part.roll(by, axis) for part, (axis, by) in zip(parts, moves, strict=True)]
        for part, (axis, by) in zip(moved, moves, strict=True):
            if not self.wrap:
                part.select(axis, 0 if by > 0 else -1).zero_()
        return torch.cat([still, *moved], dim=-1)


class ConvNet(nn.Module):
    """Patches → matrix → blocks → (2×2 pixels become one → matrix → blocks)* → matrix.

    A block is φ(Kx + b), the same in (1-α)x + αf(x), or x - (2/c²)Kᵀφ(Kx + b). Channels come last but in convolutions.
    """

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        (width, inner), (classes, entries) = state["stem.weight"].shape, state["head.weight"].shape
        stages, bias, self.config = config["stages"], config["bias"], config
        widths = [width * 2**stage for stage in range(stages)]
        self.rows = math.isqrt(entries // widths[-1]) * 2 ** (stages - 1)
        self.stem, self.head = nn.Linear(inner, width, bias=bias), nn.Linear(entries, classes, bias=False)
        times = 4 if config["down"] == "patches" else 1
        self.downs = nn.ModuleList(nn.Linear(times * size, 2 * size, bias=bias) for size in widths[:-1])
        self.act, mode = activation(config["activation"]), "zeros" if config["border"] == "zero" else "circular"
        options = {"padding": "same", "padding_mode": mode, "bias": bias}
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(size, size, config["kernel"], **options) for _ in range(config["depth"]))
            for size in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        p = self.config["patch"]
        y = self.stem(patches(pixels(x, self.stem.in_features // p**2, self.rows * p), p))
        for index, stage in enumerate(self.stages):
            if index:
                squares = patches(y, 2)
                means = self.config["down"] == "average"
                y = self.downs[index - 1](squares.unflatten(-1, (4, -1)).mean(-2) if means else squares)
            for kernel in stage:
                y = self.block(y, kernel)
        return self.head(y.flatten(1)).reshape(*x.shape[:-1], -1)

    def block(self, x: Tensor, kernel: nn.Conv2d) -> Tensor:
        residual, image = self.config["residual"], self.act(kernel(x.movedim(-1, 1)).movedim(1, -1))
        if residual == "potential":
            return x - 2 / self.config["potential_cap"] ** 2 * self.transposed(image, kernel)
        return (1 - self.config["alpha"]) * x + self.config["alpha"] * image if residual == "convex" else image

    def transposed(self, y: Tensor, kernel: nn.Conv2d) -> Tensor:
        """Kᵀy: a convolution with the kernel turned around, from as far on the other side."""
        size, mode = self.config["kernel"], "circular" if self.config["border"] == "circular" else "constant"
        before, after = size // 2, (size - 1) // 2
        padded = nn.functional.pad(y.movedim(-1, 1), (before, after, before, after), mode)
        return nn.functional.conv2d(padded, kernel.weight.flip(-1, -2).transpose(0, 1)).movedim(1, -1)


OF_VIT = {
    "architecture": "gpt",
    "norm": "none",
    "residual": "convex",
    "qk_norm": False,
    "epsilon": 1e-6,
    "gelu_divisor": 1.129,
    "relative_bias": 0,
    "window": 0,
    "rotary": False,
    "causal": False,
}
"""What blocks of a transformer of images are, of all that those of a GPT can be."""


class ViT(nn.Module):
    """Patches → matrix → + places → blocks of attention and MLP → mean → matrix."""

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        (width, inner), classes = state["stem.weight"].shape, len(state["head.weight"])
        self.patch, self.rows = config["patch"], math.isqrt(len(state["places"]))
        self.stem, self.head = nn.Linear(inner, width, bias=False), nn.Linear(width, classes, bias=False)
        self.places = nn.Parameter(torch.zeros_like(state["places"]))
        self.blocks = nn.ModuleList(Block({**OF_VIT, **config, "width": width}) for _ in range(config["depth"]))

    def forward(self, x: Tensor) -> Tensor:
        image = pixels(x, self.stem.in_features // self.patch**2, self.rows * self.patch)
        y = self.stem(patches(image, self.patch)).flatten(1, 2) + self.places
        for block in self.blocks:
            y = block(y, None)
        return self.head(y.mean(-2)).reshape(*x.shape[:-1], -1)
