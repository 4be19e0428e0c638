"""Transformers on images."""

import dataclasses
import math
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.config.fields import field_refusal, options
from lipzoo.config.ranges import Count, NonNegative, Positive, Range
from lipzoo.data.config import Sizes
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import Sequential
from lipzoo.layers.image import ChannelsLast, Patches
from lipzoo.layers.init import Init, check_cap, fresh
from lipzoo.layers.linear import Linear, Pointwise
from lipzoo.layers.pixels import AsTokens, MeanToken, Offset
from lipzoo.layers.stack import Remat, Stack
from lipzoo.models.config import AbstractModelConfig
from lipzoo.models.gpt import transformer_block
from lipzoo.models.gpt_config import GPTConfig
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.space import Space
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight, check_names


@options
@dataclasses.dataclass(frozen=True)
class ViTConfig(AbstractModelConfig):
    """The part of a recipe that describes a vision transformer."""

    depth: Count = 4
    """Blocks of attention and MLP."""
    width: Annotated[int, Range(2)] = 128
    """Features of a token."""
    heads: Count = 4
    """Attention heads of a block."""
    patch: Count = 4
    """Squares of so many pixels a side become one token."""
    activation: Literal["gelu", "maxmin"] = "maxmin"
    """Nonlinearity of the MLPs: GELU/c, or maxmin, which keeps norms."""
    softmax_scale: NonNegative = 1.0
    """Factor s on the attention logits; counts as s + √(1 + s²) in the bound."""
    attention_scale: Positive = 1 / (1 + math.sqrt(2))
    """Factor on the output of attention; 1/(s + √(1 + s²)) makes it 1-Lipschitz at unit norms."""
    residual_scale: Positive = 1.0
    """Residuals are (1-α)x + αf(x) with α = this over twice the blocks."""
    blocks_mass: Positive = 8.0
    """Mass of all blocks together in the modular norm, where stem and head have 1 each."""
    zero_init: bool = True
    """Start the head and the last matrix of every branch at zero."""
    remat: Remat = "none"
    """What the backward pass computes anew, to save memory: nothing, all but products with weights, or whole blocks."""

    def blocks(self) -> GPTConfig:
        """Those of a GPT, without rotations: what tells pixels apart is added once, and their bound is sharper so."""
        shared = {field.name for field in dataclasses.fields(GPTConfig)} & {f.name for f in dataclasses.fields(self)}
        return GPTConfig(rotary=False, **{name: getattr(self, name) for name in shared})

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        return self.blocks().conflict()

    def misfit(self, sizes: Sizes) -> str | None:
        """Why these images cannot be cut up, or None."""
        _, height, width = sizes.shape or (0, 1, 1)
        if height % self.patch or width % self.patch:
            return f"--patch {self.patch} does not divide images of {height}×{width} pixels"
        return None

    def parameters(self, sizes: Sizes) -> int:
        """Without those of the places."""
        channels = sizes.shape[0]
        return self.width * (channels * self.patch**2 + sizes.classes) + 12 * self.depth * self.width**2


class ViT(AbstractModule):
    """Patches → matrix → + places → tokens → blocks of attention and MLP → mean → matrix (arXiv 2010.11929).

    The blocks are those of a `GPT`, but every token looks at all others. Images are measured by all of their entries
    and sequences by their largest token, which costs √T for T tokens: the bound says what a change of one patch can do,
    as attention can turn all tokens to it.

    **Arguments:** `sizes`, `config`, `cap`, as of `ShiftNet`. Weights are named stem, places, blocks.q, … and head.

    !!! example

        ```python
        net = ViT(Sizes(3072, 10, (3, 32, 32)), ViTConfig(), cap=1.0, key=jax.random.key(0))
        logits = jax.vmap(net)(images)
        ```
    """

    deviates = True
    body: Sequential

    def __init__(self, sizes: Sizes, config: ViTConfig, *, cap: float = math.inf, key: PRNGKeyArray):
        refusal = field_refusal(config) or config.conflict() or config.misfit(sizes)
        if refusal or len(sizes.shape) != 3:
            raise ValueError(f"there is no such ViT: {refusal or 'it takes images (channels, height, width)'}")
        check_cap(cap)
        (channels, height, wide), width, patch = sizes.shape, config.width, config.patch
        keys, total = jax.random.split(key, config.depth + 2), 3 + config.blocks_mass
        pixels, share = height * wide // patch**2, config.blocks_mass / (6 * config.depth) / total
        init: Init = "zero" if config.zero_init else "orthogonal"

        def matrix(key: PRNGKeyArray, shape: tuple[int, ...], name: str, init: Init) -> Weight:
            place = "head" if name == "head" else "hidden"
            return fresh(key, shape, name=name, place=place, cap=cap, share=1 / total, init=init)

        stem = Pointwise(matrix(keys[0], (width, channels * patch**2), "stem", "orthogonal"))
        places = Weight(jnp.zeros((pixels * width, 1), jnp.float32), "places", COLUMN, cap, 1 / total)

        def block(key: PRNGKeyArray) -> Sequential:
            return transformer_block(config.blocks(), cap, share, key, causal=False)

        head = Linear(matrix(keys[1], (sizes.classes, width), "head", init))
        stack = Stack(eqx.filter_vmap(block)(keys[2:]), config.remat)
        image = [ChannelsLast(channels, height, wide), Patches(patch), stem, Offset(places)]
        self.body = Sequential([*image, AsTokens(), stack, MeanToken(pixels), head])
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
        """By the bound up to the last matrix, and by that itself."""
        *features, head = self.body.layers
        return Sequential([_Whole(Sequential(features)), head]).spread(incoming, reach, steering)


class _Whole(AbstractModule):
    """A module that is known by its bound alone, since what is inside is no vector."""

    module: AbstractModule

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.module(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return self.module.bound(incoming, measure)


def build_vit(config: ViTConfig, sizes: Sizes, *, key: PRNGKeyArray) -> ViT:
    """The model with fresh weights, all of them free."""
    return ViT(sizes, config, key=key)
