"""A GPT whose blocks are stacked, so that equal matrices are one array for optimizer and constraints."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lipzoo.config.fields import field_refusal
from lipzoo.data.config import Sizes
from lipzoo.layers.activation import GELU, Identity, SquaredReLU, Tanh
from lipzoo.layers.attention import Attention
from lipzoo.layers.base import AbstractModule, Mask
from lipzoo.layers.compose import AbstractResidual, ConvexResidual, PerToken, Residual, Sequential
from lipzoo.layers.embedding import Embedding
from lipzoo.layers.init import BELOW_CAP, Init, check_cap, fresh
from lipzoo.layers.linear import Linear, Scale
from lipzoo.layers.normalization import RMSNorm, layer_norm
from lipzoo.layers.sorting import GroupSort
from lipzoo.layers.stack import Stack
from lipzoo.models.gpt_config import GPTConfig
from lipzoo.models.lipsformer import lipsformer_block
from lipzoo.theory.bound import Bound
from lipzoo.theory.geometry import OFFSETS, ROWS
from lipzoo.theory.space import Space
from lipzoo.theory.weight import Measure, Weight, check_names


class GPT(AbstractModule):
    """Embedding → blocks of attention and MLP → head → scale.

    With α = `residual_scale`/(2N) each of the N blocks is x ← (1-α)x + α·attention(x), x ← (1-α)x + α·MLP(x), where the
    MLP is d → 4d → d with GELU/c.

    The modular norm gives embedding and head the mass 1 each and all 6N block matrices together `blocks_mass`; a share
    is the mass over the total, divided by the constant factors downstream: α, the scale of attention (for q, k, v), and
    the final scale.

    !!! example

        ```python
        gpt = GPT(65, GPTConfig(width=256, heads=4), cap=1.0, key=jax.random.key(0))
        logits = jax.vmap(gpt)(tokens)  # (batch, time) → (batch, time, 65)
        ```
    """

    deviates = True
    embedding: Embedding
    stack: Stack
    norm: AbstractModule
    head: Linear
    scale: Sequential
    config: GPTConfig = eqx.field(static=True)

    def __init__(self, vocabulary: int, config: GPTConfig, *, cap: float = math.inf, key: PRNGKeyArray):
        if refusal := field_refusal(config) or config.conflict():
            raise ValueError(f"there is no such GPT: {refusal}")
        if vocabulary < 1:
            raise ValueError(f"a GPT needs a vocabulary of at least 1, but was given {vocabulary}")
        check_cap(cap)
        self.config = config
        total = (2 + config.blocks_mass) * config.final_scale
        share = config.blocks_mass / (6 * config.depth) / total
        keys = jax.random.split(key, config.depth + 2)
        rows = jax.random.normal(keys[0], (vocabulary, config.width, 1), jnp.float32)
        rows = rows / jnp.sqrt(jnp.mean(rows**2, axis=1, keepdims=True)) * BELOW_CAP
        self.embedding = Embedding(Weight(rows, "embedding", ROWS, cap, 1 / total, "embedding"))
        blocks = eqx.filter_vmap(lambda key: _block(config, cap, share, key))(keys[2:])
        self.stack = Stack(blocks, config.remat)
        self.norm = _norm(config)
        init: Init = "zero" if config.zero_init else "orthogonal"
        shape = (vocabulary, config.width)
        self.head = Linear(fresh(keys[1], shape, name="head", place="head", cap=cap, share=1 / total, init=init))
        limit = [Tanh(config.logit_softcap)] if config.logit_softcap else []
        self.scale = Sequential([Scale(config.final_scale), *limit])
        check_names(self)

    @property
    def takes(self) -> Space:
        return self.embedding.takes

    def __call__(self, x: Int[Array, " time"]) -> Float[Array, "time vocabulary"]:
        return self.masked(x, Mask())

    def masked(self, x: Int[Array, " time"], mask: Mask) -> Float[Array, "time vocabulary"]:
        return self.logits(self.stack.masked(self.embedding(x), self.mask(x, mask.window)))

    def mask(self, x: Int[Array, " time"], window: int = 0) -> Mask:
        """What attention may look at in a sequence: documents are told apart by the tokens themselves."""
        separator = self.config.separator
        return Mask(window, jnp.cumsum(x == separator) if separator >= 0 else None)

    def logits(self, x: Float[Array, "time d"]) -> Float[Array, "time vocabulary"]:
        """What the head makes of the last block's output."""
        return self.ends(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for module in (self.embedding, self.stack, self.ends):
            incoming = module.bound(incoming, measure)
        return incoming

    @property
    def ends(self) -> Sequential:
        """What comes after the last block: `logits` as a module."""
        return Sequential([self.norm, PerToken(self.head), self.scale])


def build_gpt(config: GPTConfig, sizes: Sizes, *, key: PRNGKeyArray) -> GPT:
    """The model with fresh weights, all of them free. Tokens come from the vocabulary that they predict."""
    return GPT(sizes.classes, config, key=key)


def _norm(config: GPTConfig) -> AbstractModule:
    return {"none": Identity(), "rms": RMSNorm(config.epsilon), "layer": layer_norm(config.epsilon)}[config.norm]


def _block(config: GPTConfig, cap: float, share: float, key: PRNGKeyArray) -> Sequential:
    """One block, its weights with this share of the learning rate but for what is constant downstream in the block."""
    width, heads = config.width, config.heads
    head_shape = (heads, width // heads, width) if config.granularity == "head" else (width, width)
    if config.architecture == "lipsformer":
        return lipsformer_block(
            width,
            heads,
            head_shape=head_shape,
            temperature=config.softmax_scale,
            epsilon=config.epsilon,
            window=config.window,
            zero_init=config.zero_init,
            cap=cap,
            share=share,
            key=key,
        )
    convex = config.residual == "convex"
    alpha = config.residual_scale / (2 * config.depth) if convex else 1.0
    output_scale = config.attention_scale if convex else 1.0
    keys = jax.random.split(key, 6)
    last: Init = "zero" if config.zero_init else "orthogonal"

    def matrix(
        index: int, name: str, shape: tuple[int, ...], init: Init = "orthogonal", downstream: float = 1.0
    ) -> Weight:
        share_here = share / alpha / downstream
        return fresh(keys[index], shape, name=f"blocks.{name}", cap=cap, share=share_here, init=init)

    def residual(branch: AbstractModule) -> AbstractResidual:
        branch = branch if config.norm == "none" else Sequential([_norm(config), branch])
        return ConvexResidual(branch, alpha) if convex else Residual(branch)

    q, k, v = (matrix(index, name, head_shape, downstream=output_scale) for index, name in enumerate("qkv"))
    attention = Attention(
        q,
        k,
        v,
        matrix(3, "out", (width, width), last),
        heads,
        config.softmax_scale,
        output_scale,
        _relative_bias(config) if config.relative_bias else None,
        config.epsilon if config.qk_norm else None,
        window=config.window,
        rotary=config.rotary,
    )
    up, down = Linear(matrix(4, "up", (4 * width, width))), Linear(matrix(5, "down", (width, 4 * width), last))
    activations = {"gelu": GELU(config.gelu_divisor), "maxmin": GroupSort(), "relu2": SquaredReLU(4 * width)}
    activation = activations[config.activation]
    return Sequential([residual(attention), residual(PerToken(Sequential([up, activation, down])))])


def _relative_bias(config: GPTConfig) -> Weight:
    """At first head i looks mostly at the token i places back."""
    reach, heads = config.relative_bias, config.heads
    distance = jnp.abs(jnp.arange(reach)[None, :] - jnp.arange(heads)[:, None])
    share = 1 / ((2 + config.blocks_mass) * config.final_scale)
    return Weight(-distance[..., None].astype(jnp.float32), "blocks.position", OFFSETS, share=share)
