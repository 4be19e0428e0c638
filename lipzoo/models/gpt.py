"""A GPT whose blocks are stacked, so that equal matrices are one array for optimizer and constraints."""

import dataclasses
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lipzoo.theory.bound import Bound, Domain, namespace
from lipzoo.config.fields import choice_refusal
from lipzoo.layers.attention import Attention
from lipzoo.layers.init import BELOW_CAP, Init, check_cap, fresh
from lipzoo.layers.layers import (
    GELU,
    GELU_DIVISOR,
    NORM_EPSILON,
    AbstractModule,
    AbstractResidual,
    AbstractStack,
    Cache,
    ConvexResidual,
    GroupSort,
    Identity,
    Linear,
    Mask,
    PerToken,
    Position,
    Residual,
    RMSNorm,
    Scale,
    Sequential,
    SquaredReLU,
    Tanh,
    check_axes,
    check_module,
    layer_norm,
)
from lipzoo.models.lipsformer import lipsformer_block
from lipzoo.theory.space import Space, SpaceError, Symbols, Tokens
from lipzoo.theory.weight import Measure, Weight, check_names, map_weights, weights

Granularity = Literal["head", "matrix"]
Remat = Literal["none", "products", "blocks"]
SAVED = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class Embedding(AbstractModule):
    """token ↦ row of a table. Each row is a matrix of one column, so its RMS→RMS norm is its RMS norm."""

    table: Weight

    @property
    def takes(self) -> Space:
        return Symbols(self.table.array.shape[0])

    def __call__(self, x: Int[Array, " time"]) -> Float[Array, "time d"]:
        if x.ndim != 1 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"an embedding takes one sequence of whole numbers, but was given shape {x.shape} of {x.dtype}: "
                "for a batch, jax.vmap the model"
            )
        return self.table.array[x, :, 0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(max row norm, 1): the certified function begins at the embedded tokens, which are its domain."""
        check_axes(self.table, "an embedding", "(count, size, 1)")
        count, size, _ = self.table.array.shape
        if incoming.space != Symbols(count):
            raise SpaceError(f"{self.table.name} takes {Symbols(count)}, but was given {incoming.space}")
        rows = measure(self.table)
        radius, tokens = namespace(rows).max(rows), Tokens(size)
        start = Bound.start(tokens, radius)
        return dataclasses.replace(start, domain=Domain(tokens, radius, embedded=True))


class Stack(AbstractStack):
    """Equal blocks one after the other, held as one block whose arrays have a leading axis, and run by a scan.

    `remat` says what the backward pass computes anew: `none`; all but the `products` with weights (scores,
    activations), which on CPUs costs less than writing and reading them; or everything in the `blocks`.
    """

    blocks: AbstractModule
    remat: Remat = eqx.field(static=True, default="products")

    def __check_init__(self) -> None:
        check_module(self.blocks, "Stack")
        if self.remat not in SAVED:
            raise ValueError(f"remat must be one of {', '.join(SAVED)}, got {self.remat!r}")
        depths = {np.shape(weight.array)[:1] for weight in weights(self.blocks)}
        if len(depths) != 1 or not all(depths):
            raise ValueError(f"the arrays of a stack must have one leading axis, of its blocks, but have {depths}")

    @property
    def depth(self) -> int:
        """How many blocks there are: as many as the arrays hold, so none runs that is not counted."""
        return weights(self.blocks)[0].array.shape[0]

    @property
    def takes(self) -> Space | None:
        return self.block(0).takes

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time d"]:
        return self.masked(x, Mask())

    def masked(self, x: Float[Array, "time d"], mask: Mask) -> Float[Array, "time d"]:
        def run(x: Array, block: AbstractModule) -> tuple[Array, None]:
            return _whole(block).masked(x, mask), None

        run = jax.checkpoint(run, policy=SAVED[self.remat], prevent_cse=False)
        return jax.lax.scan(run, x, self.blocks)[0]

    def extend(self, x: Float[Array, "time d"], cache: Cache, first: Position) -> tuple[Float[Array, "time d"], Cache]:
        def run(x: Array, block_and_cache: tuple[AbstractModule, Cache]) -> tuple[Array, Cache]:
            block, cache = block_and_cache
            return block.extend(x, cache, first)

        return jax.lax.scan(run, x, (self.blocks, cache))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for index in range(self.depth):
            outgoing = self.block(index).bound(incoming, measure)
            if outgoing.space != incoming.space:
                raise SpaceError(f"a block of a stack was given {incoming.space} and gives {outgoing.space}")
            incoming = outgoing
        return incoming

    def block(self, index: int) -> AbstractModule:
        """One block, its weights named after its place."""

        def take(weight: Weight) -> Weight:
            name = f"blocks.{index}.{weight.name.removeprefix('blocks.')}"  # Certificates tell weights by name.
            return dataclasses.replace(weight, array=_take(weight.array, index), name=name)

        return map_weights(take, self.blocks)

    def matrices(self) -> list[Weight]:
        return [weight for index in range(self.depth) for weight in self.block(index).matrices()]


def _whole(block: AbstractModule) -> AbstractModule:
    """A block on every device of the mesh in use, if there is one, however it was cut up before (FSDP)."""
    in_use = not jax.sharding.get_abstract_mesh().empty
    return jax.lax.with_sharding_constraint(block, PartitionSpec()) if in_use else block


def _take(array: Any, index: int) -> Any:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
    return array[index]


OF_GPT = (
    "norm",
    "residual",
    "qk_norm",
    "activation",
    "gelu_divisor",
    "residual_scale",
    "attention_scale",
    "relative_bias",
)
"""Options that LipsFormer has no use for."""


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The part of a recipe that describes a transformer.

    The defaults are the Lipschitz GPT of Newhouse et al. 2025. `norm`, `residual`, `qk_norm`, `logit_softcap` and
    `activation` make the usual GPT of it, whose bound is huge: each normalization layer counts as 1/√epsilon.
    """

    architecture: Literal["gpt", "lipsformer"] = "gpt"
    """gpt, or the blocks of LipsFormer (Qi et al. 2023), whose temperature is --softmax-scale."""
    depth: int = 3
    """Blocks of attention and MLP."""
    width: int = 256
    """Features of a token."""
    heads: int = 4
    """Attention heads of a block."""
    granularity: Granularity = "head"
    """What caps and muon take for one matrix of q, k and v: each head, or the whole."""
    softmax_scale: float = 1.0
    """Factor s on the attention logits; counts as 1 + 2s in the bound."""
    attention_scale: float = 1 / 3
    """Factor on the output of attention with convex residuals; 1/(1 + 2s) makes it 1-Lipschitz at unit norms."""
    relative_bias: int = 0
    """Distances for which each head learns a bias on its attention logits; costs nothing in the bound; 0 for none."""
    residual_scale: float = 1.0
    """Residuals are (1-α)x + αf(x) with α = this over twice the blocks."""
    final_scale: float = 1.0
    """Fixed factor on the logits; counts in the bound."""
    blocks_mass: float = 32.0
    """Mass of all blocks together in the modular norm, where embedding and head have 1 each."""
    zero_init: bool = True
    """Start the head and the last matrix of every branch at zero."""
    norm: Literal["none", "rms", "layer"] = "none"
    """Normalization before every branch and before the head; costs a factor of 1/√epsilon each."""
    residual: Literal["convex", "plain"] = "convex"
    """(1-α)x + αf(x), or x + f(x)."""
    qk_norm: bool = False
    """Normalize the queries and keys of every head."""
    epsilon: float = NORM_EPSILON
    """ε of normalization layers."""
    activation: Literal["gelu", "maxmin", "relu2"] = "gelu"
    """Nonlinearity of the MLPs: GELU/c; maxmin, which keeps norms; or max(x, 0)², steeper the larger its input."""
    gelu_divisor: float = GELU_DIVISOR
    """c of GELU/c; at 1.1290 and above it is 1-Lipschitz."""
    logit_softcap: float = 0.0
    """c > 0 makes the logits c·tanh(z/c); 0 leaves them as they are."""
    window: int = 0
    """Tokens that attention looks back, itself among them; 0 for all."""
    window_stages: int = 1
    """Equal parts of the run in which the window grows to its full size; each is compiled anew."""
    separator: int = -1
    """Token that begins a document: tokens of different documents do not see one another; -1 for none."""
    remat: Remat = "products"
    """What the backward pass computes anew to save memory: nothing, all but products with weights, whole blocks."""

    def refusal(self) -> str | None:
        """Why there is no such model, or None."""
        if refusal := choice_refusal(self):
            return refusal
        if self.depth < 1 or self.heads < 1:
            return "--depth and --heads must be at least 1"
        if self.width < 2 or self.width % (2 * self.heads):
            return f"--width must be divisible by {2 * self.heads}, twice the --heads, got {self.width}"
        if not 0 < self.residual_scale <= 2 * self.depth:
            return f"--residual-scale must be positive and at most {2 * self.depth}, got {self.residual_scale}"
        if not 0 <= self.softmax_scale < math.inf:
            return f"--softmax-scale must be at least 0 and finite, got {self.softmax_scale}"
        if not 0 <= self.relative_bias <= 4096:
            return f"--relative-bias must lie between 0 and 4096, got {self.relative_bias}"
        for name in ("attention_scale", "final_scale", "blocks_mass", "epsilon", "gelu_divisor"):
            if not 0 < getattr(self, name) < math.inf:
                return f"--{name.replace('_', '-')} must be positive and finite, got {getattr(self, name)}"
        if not 0 <= self.logit_softcap < math.inf:
            return f"--logit-softcap must be at least 0 and finite, got {self.logit_softcap}"
        if self.window < 0 or not 1 <= self.window_stages <= max(self.window, 1):
            return f"--window must be at least 0, --window-stages at least 1 and at most --window {self.window}"
        return self._lipsformer_refusal()

    def window_at(self, progress: float) -> int:
        """The window after a fraction `progress` < 1 of the run; 0 where all tokens are seen."""
        return math.ceil(self.window * (math.floor(progress * self.window_stages) + 1) / self.window_stages)

    def _lipsformer_refusal(self) -> str | None:
        """LipsFormer has its own normalization, residuals and activation."""
        default = GPTConfig()
        for name in OF_GPT:
            if self.architecture == "lipsformer" and getattr(self, name) != getattr(default, name):
                return f"--{name.replace('_', '-')} is not for --architecture lipsformer"
        return None

    def first_norm(self, weight: Weight) -> float:
        """An upper bound of a fresh weight's norm: LipsFormer begins with σ₁ = 1, all others with norm 1."""
        hidden = self.architecture == "lipsformer" and weight.role == "hidden"
        return max(1.0, weight.rms_factor) if hidden else 1.0

    def build(self, in_size: int, out_size: int, *, key: PRNGKeyArray) -> "GPT":
        """The model with fresh weights, all of them free. Tokens come from the vocabulary that they predict."""
        return GPT(out_size, self, key=key)


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

    embedding: Embedding
    stack: Stack
    norm: AbstractModule
    head: Linear
    scale: Sequential
    config: GPTConfig = eqx.field(static=True)

    def __init__(self, vocabulary: int, config: GPTConfig, *, cap: float = math.inf, key: PRNGKeyArray):
        if refusal := config.refusal():
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
        self.embedding = Embedding(Weight(rows, "embedding", "embedding", cap, 1 / total))
        blocks = eqx.filter_vmap(lambda key: _block(config, cap, share, key))(keys[2:])
        self.stack = Stack(blocks, config.remat)
        self.norm = _norm(config)
        init: Init = "zero" if config.zero_init else "orthogonal"
        shape = (vocabulary, config.width)
        self.head = Linear(fresh(keys[1], shape, name="head", role="head", cap=cap, share=1 / total, init=init))
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

    def extend(
        self, x: Int[Array, " time"], cache: Cache, first: Position
    ) -> tuple[Float[Array, "time vocabulary"], Cache]:
        """Logits of further tokens of one document (see `AbstractModule.extend`)."""
        hidden, cache = self.stack.extend(self.embedding(x), cache, first)
        return self.logits(hidden), cache

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for module in (self.embedding, self.stack, self.ends):
            incoming = module.bound(incoming, measure)
        return incoming

    @property
    def ends(self) -> Sequential:
        """What comes after the last block: `logits` as a module."""
        return Sequential([self.norm, PerToken(self.head), self.scale])


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
    return Weight(-distance[..., None].astype(jnp.float32), "blocks.position", "position", share=share)
