"""Convolutional networks whose blocks neither stretch images nor shrink them."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.config.fields import field_refusal
from lipzoo.data.config import Sizes
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import ConvexResidual, Sequential
from lipzoo.layers.convolution import Conv2d
from lipzoo.layers.image import ChannelsLast, Patches
from lipzoo.layers.init import check_cap, fresh, fresh_kernel
from lipzoo.layers.linear import Flatten, Linear, Pointwise
from lipzoo.layers.pooling import AveragePool
from lipzoo.layers.potential import PotentialResidual
from lipzoo.layers.stack import Stack
from lipzoo.models.convnet_config import ACTIVATIONS, ConvNetConfig
from lipzoo.models.head import BIAS_MASS, image_head
from lipzoo.theory.bound import Bound
from lipzoo.theory.convolution import Convolution
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.space import Space
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight, check_names


class ConvNet(AbstractModule):
    """Patches → matrix → blocks → (2×2 pixels become one → matrix → blocks)* → all pixels → matrix.

    A block is a convolution in a residual (`ConvNetConfig.residual`). With caps of 1, and potentials made for 1, every
    part is 1-Lipschitz.

    Every array has mass 1 in the modular norm: of M arrays (a stage's kernels are as many as its blocks) each has the
    share 1/M, divided by the constant factor of the branch that it stands on; a bias has `BIAS_MASS` of that.

    **Arguments:**

    - `sizes`: pixels, classes, and the shape (channels, height, width) of an image, which comes as one vector.
    - `config`: see `ConvNetConfig`.
    - `cap`: the norm cap of every weight (default: free).

    Weights are named stem, down1, down2, …, blocks.stage0, blocks.stage1, … and head, their biases with .bias after it.

    !!! example

        ```python
        net = ConvNet(Sizes(3072, 10, (3, 32, 32)), ConvNetConfig(), cap=1.0, key=jax.random.key(0))
        logits = jax.vmap(net)(images)
        ```
    """

    deviates = True
    body: Sequential

    def __init__(self, sizes: Sizes, config: ConvNetConfig, *, cap: float = math.inf, key: PRNGKeyArray):
        refusal = field_refusal(config) or config.conflict() or config.misfit(sizes)
        if refusal or len(sizes.shape) != 3:
            raise ValueError(f"there is no such ConvNet: {refusal or 'it takes images (channels, height, width)'}")
        check_cap(cap)
        sides, keys = config.sides(sizes), jax.random.split(key, 2 * config.stages + 1)
        arrays = config.stages * (config.depth + 1) * (2 if config.bias else 1) + 1
        parts = _Parts(config, cap, 1 / arrays)
        channels, height, width = sizes.shape
        layers: list[AbstractModule] = [ChannelsLast(channels, height, width), Patches(config.patch)]
        into = channels * config.patch**2
        for stage, side in enumerate(sides):
            out = config.width * 2**stage
            if stage:
                layers.append(Patches(2) if config.down == "patches" else AveragePool(2))
                into = into * 4 if config.down == "patches" else into
            layers.append(parts.matrix(keys[2 * stage], out, into, f"down{stage}" if stage else "stem"))
            layers.append(parts.blocks(keys[2 * stage + 1], out, side, f"blocks.stage{stage}"))
            into = out
        shape = sizes.classes, math.prod(sides[-1]) * into
        head = image_head(keys[-1], shape, config.head, config.zero_init, cap, 1 / arrays)
        self.body = Sequential([*layers, Flatten(), Linear(head)])
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


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of a network, under one cap, with one share of the learning rate."""

    config: ConvNetConfig
    cap: float
    share: float

    def matrix(self, key: PRNGKeyArray, out: int, into: int, name: str) -> Pointwise:
        weight = fresh(key, (out, into), name=name, cap=self.cap, share=self.share, init="orthogonal")
        return Pointwise(weight, self.bias(name, out, self.share))

    def bias(self, name: str, size: int, share: float) -> Weight | None:
        zero = jnp.zeros((size, 1), jnp.float32)
        return Weight(zero, f"{name}.bias", COLUMN, self.cap, BIAS_MASS * share) if self.config.bias else None

    def blocks(self, key: PRNGKeyArray, width: int, side: tuple[int, int], name: str) -> Stack:
        keys = jax.random.split(key, self.config.depth)
        return Stack(eqx.filter_vmap(lambda key: self.block(key, width, side, name))(keys), self.config.remat)

    def block(self, key: PRNGKeyArray, width: int, side: tuple[int, int], name: str) -> AbstractModule:
        config, share = self.config, self.share / self.config.branch
        geometry = Convolution(side, config.kernel, padding=config.border)
        shape = width, width * config.kernel**2
        kernel = fresh_kernel(key, shape, geometry, name=name, cap=self.cap, share=share)
        inner, activation = Conv2d(kernel, self.bias(name, width, share)), ACTIVATIONS[config.activation]()
        if config.residual == "potential":
            return PotentialResidual(inner, activation, 2 / config.potential_cap**2)
        block = Sequential([inner, activation])
        return ConvexResidual(block, config.alpha) if config.residual == "convex" else block


def build_convnet(config: ConvNetConfig, sizes: Sizes, *, key: PRNGKeyArray) -> ConvNet:
    """The model with fresh weights, all of them free."""
    return ConvNet(sizes, config, key=key)
