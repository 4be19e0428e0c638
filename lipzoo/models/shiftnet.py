"""Networks of shifts and matrices on images, without convolutions."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.config.fields import field_refusal, options
from lipzoo.config.ranges import Count, Range, Whole
from lipzoo.data.config import Sizes
from lipzoo.layers.absolute import Abs
from lipzoo.layers.activation import ReLU
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import Sequential
from lipzoo.layers.image import Border, ChannelsLast, Patches, Shift
from lipzoo.layers.init import check_cap, fresh
from lipzoo.layers.linear import Flatten, Linear, Pointwise
from lipzoo.layers.sorting import GroupSort
from lipzoo.layers.stack import Remat, Stack
from lipzoo.models.config import AbstractModelConfig
from lipzoo.models.head import BIAS_MASS, Head, image_head
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.space import Space
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight, check_names

Activation = Literal["maxmin", "groupsort", "abs", "relu"]
ACTIVATIONS: Mapping[Activation, Callable[[], AbstractModule]] = {
    "maxmin": GroupSort,
    "groupsort": lambda: GroupSort(group=8),
    "abs": lambda: Abs(0.5),
    "relu": ReLU,
}
SIZES = {"xs": (6, 128), "s": (8, 192), "m": (12, 256), "l": (16, 512)}
"""Blocks and channels."""


@options
@dataclasses.dataclass(frozen=True)
class ShiftNetConfig(AbstractModelConfig):
    """The part of a recipe that describes a ShiftNet."""

    size: Literal["xs", "s", "m", "l"] = "xs"
    """Blocks × channels: xs 6×128, s 8×192, m 12×256, l 16×512."""
    depth: Whole = 0
    """Blocks, instead of those of --size; 0 for these."""
    width: Whole = 0
    """Channels, instead of those of --size; 0 for these."""
    patch: Count = 4
    """Squares of so many pixels a side become one pixel of many channels at first."""
    activation: Activation = "maxmin"
    """Nonlinearity after every matrix of channels; each is 1-Lipschitz, and all but relu keep norms."""
    bias: bool = True
    """Add a bias to every channel before the nonlinearity."""
    shift: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    """Fraction of the channels that move by a pixel in each block, a quarter of them in each direction."""
    border: Border = "zero"
    """What moves in over the border of an image: zeros, or what left at the other side."""
    head: Head = "matrix"
    """What is held under the cap of the last matrix: the whole, or each of its rows by itself."""
    zero_init: bool = True
    """Start the last matrix at zero."""
    remat: Remat = "none"
    """What the backward pass computes anew, to save memory: nothing, all but products with weights, or whole blocks."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Blocks, channels."""
        depth, width = SIZES[self.size]
        return self.depth or depth, self.width or width

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        width, group = self.sizes[1], {"maxmin": 2, "groupsort": 8}.get(self.activation, 1)
        if width % group:
            return f"--activation {self.activation} needs a --width divisible by {group}, got {width}"
        if width * self.shift < 4:
            return f"--shift {self.shift:g} of {width} channels leaves none for each direction: raise either"
        return None

    def misfit(self, sizes: Sizes) -> str | None:
        """Why these images cannot be cut up, or None."""
        _, height, width = sizes.shape or (0, 1, 1)
        if height % self.patch or width % self.patch:
            return f"--patch {self.patch} does not divide images of {height}×{width} pixels"
        return None

    def parameters(self, sizes: Sizes) -> int:
        """Without biases."""
        depth, width = self.sizes
        channels, height, wide = sizes.shape
        pixels = height * wide // self.patch**2
        return width * (channels * self.patch**2 + depth * width + pixels * sizes.classes)


class ShiftNet(AbstractModule):
    """Patches → matrix → (shift → matrix → bias → activation)* → all pixels → matrix.

    After LipNeXt (arXiv 2601.18513): half of the channels move by one pixel, so that matrices of channels see their
    neighbours, and matrices that stay orthogonal keep every norm. So all that costs norm is the last matrix.

    Every matrix has mass 1 in the modular norm, a bias `BIAS_MASS`: a share is the mass over that of all.

    **Arguments:**

    - `sizes`: pixels, classes, and the shape (channels, height, width) of an image, which comes as one vector.
    - `config`: see `ShiftNetConfig`.
    - `cap`: the norm cap of every weight (default: free).

    Weights are named stem, blocks.mix and head, their biases stem.bias and blocks.mix.bias.

    !!! example

        ```python
        net = ShiftNet(Sizes(3072, 10, (3, 32, 32)), ShiftNetConfig(size="xs"), cap=1.0, key=jax.random.key(0))
        logits = jax.vmap(net)(images)
        ```
    """

    deviates = True
    body: Sequential

    def __init__(self, sizes: Sizes, config: ShiftNetConfig, *, cap: float = math.inf, key: PRNGKeyArray):
        refusal = field_refusal(config) or config.conflict() or config.misfit(sizes)
        if refusal or len(sizes.shape) != 3:
            raise ValueError(f"there is no such ShiftNet: {refusal or 'it takes images (channels, height, width)'}")
        check_cap(cap)
        (depth, width), (channels, height, wide) = config.sizes, sizes.shape
        patch, keys = config.patch, jax.random.split(key, 3)
        share = 1 / ((depth + 1) * (1 + BIAS_MASS * config.bias) + 1)
        pixels = height * wide // patch**2

        def matrix(key: PRNGKeyArray, shape: tuple[int, ...], name: str) -> Weight:
            return fresh(key, shape, name=name, cap=cap, share=share, init="orthogonal")

        def bias(name: str, *stack: int) -> Weight | None:
            zero = jnp.zeros((*stack, width, 1), jnp.float32)
            return Weight(zero, name, COLUMN, cap, BIAS_MASS * share) if config.bias else None

        stem = Pointwise(matrix(keys[0], (width, channels * patch**2), "stem"), bias("stem.bias"))
        mix = Pointwise(matrix(keys[1], (depth, width, width), "blocks.mix"), bias("blocks.mix.bias", depth))
        block = Sequential([Shift(config.shift, config.border), mix, ACTIVATIONS[config.activation]()])
        head = image_head(keys[2], (sizes.classes, pixels * width), config.head, config.zero_init, cap, share)
        image = ChannelsLast(channels, height, wide)
        self.body = Sequential([image, Patches(patch), stem, Stack(block, config.remat), Flatten(), Linear(head)])
        check_names(self)

    @property
    def takes(self) -> Space | None:
        """One image, flat, channels first."""
        return self.body.takes

    def __call__(self, x: Float[Array, "*pixels"]) -> Float[Array, " classes"]:
        return self.body(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return self.body.bound(incoming, measure)

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        return self.body.spread(incoming, reach, steering)


def build_shiftnet(config: ShiftNetConfig, sizes: Sizes, *, key: PRNGKeyArray) -> ShiftNet:
    """The model with fresh weights, all of them free."""
    return ShiftNet(sizes, config, key=key)
