"""A GPT whose blocks are stacked, so that equal matrices are one array for optimizer and constraints."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lipzoo.bound import Bound, namespace
from lipzoo.models.attention import Attention
from lipzoo.models.layers import GELU, GELU_DIVISOR, AbstractModule, ConvexResidual, Linear, Scale, Sequential
from lipzoo.models.mlp import semi_orthogonal
from lipzoo.weight import Measure, Weight, check_names, map_weights

Granularity = Literal["head", "matrix"]
OUTPUT_SCALE = 1 / 3
"""Fixed factor on attention: with unit norms, 1/3 makes it 1-Lipschitz on tokens of norm at most one."""


class Embedding(AbstractModule):
    """token ↦ row of a table. Each row is a matrix of one column, so its RMS→RMS norm is its RMS norm."""

    table: Weight

    def __call__(self, x: Int[Array, " time"]) -> Float[Array, "time d"]:
        return self.table.array[x, :, 0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(max row norm, L): the certified function begins at the embedded tokens."""
        rows = measure(self.table)
        return Bound(namespace(rows).max(rows), incoming.log_lipschitz)


class PerToken(AbstractModule):
    """A map of vectors on every token. Sequences are measured by their largest token, so the bound is the same."""

    module: AbstractModule

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time out"]:
        return jax.vmap(self.module)(x)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        return self.module.bound(incoming, measure)


class Stack(AbstractModule):
    """Equal blocks one after the other, held as one block whose arrays have a leading axis, and run by a scan."""

    blocks: AbstractModule
    depth: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "time d"]) -> Float[Array, "time d"]:
        def run(x: Array, block: AbstractModule) -> tuple[Array, None]:
            return block(x), None

        return jax.lax.scan(run, x, self.blocks)[0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for index in range(self.depth):
            incoming = self.block(index).bound(incoming, measure)
        return incoming

    def block(self, index: int) -> AbstractModule:
        """One block, its weights named after its place."""

        def take(weight: Weight) -> Weight:
            name = f"blocks.{index}.{weight.name.removeprefix('blocks.')}"  # Certificates tell weights by name.
            return dataclasses.replace(weight, array=_take(weight.array, index), name=name)

        return map_weights(take, self.blocks)

    def matrices(self) -> list[Weight]:
        return [weight for index in range(self.depth) for weight in self.block(index).matrices()]


def _take(array: Any, index: int) -> Any:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
    return array[index]


class GPT(AbstractModule):
    """Embedding → N blocks of two convex residuals (attention, then d → 4d → d with GELU/c) → head → scale.

    With α = `residual_scale`/(2N) each block is x ← (1-α)x + α·attention(x), x ← (1-α)x + α·MLP(x).

    The modular norm gives embedding and head the mass 1 each and all 6N block matrices together `blocks_mass`; a share
    is the mass over the total, divided by the constant factors downstream: α, the 1/3 of attention (for q, k, v), and
    the final scale.

    !!! example

        ```python
        gpt = GPT(65, 256, depth=3, heads=4, cap=1.0, key=jax.random.key(0))
        logits = jax.vmap(gpt)(tokens)  # (batch, time) → (batch, time, 65)
        ```
    """

    tokens: ClassVar[bool] = True
    embedding: Embedding
    stack: Stack
    head: Linear
    scale: Scale

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        depth: int,
        heads: int,
        granularity: Granularity = "head",
        softmax_scale: float = 1.0,
        residual_scale: float = 1.0,
        final_scale: float = 1.0,
        blocks_mass: float = 32.0,
        gelu_divisor: float = GELU_DIVISOR,
        zero_init: bool = True,
        cap: float = math.inf,
        key: PRNGKeyArray,
    ):
        alpha = residual_scale / (2 * depth)
        total = (2 + blocks_mass) * final_scale
        share = blocks_mass / (6 * depth) / total / alpha
        keys = jax.random.split(key, depth + 2)
        norm = min(1.0, cap) * (1 - 1e-5)

        def matrix(key: PRNGKeyArray, name: str, shape: tuple[int, ...], share: float, zero: bool) -> Weight:
            out_size, in_size = shape[-2:]
            count = math.prod(shape[:-2])
            draw = jax.vmap(lambda key: semi_orthogonal(key, out_size, in_size, norm))
            array = jnp.zeros(shape) if zero else draw(jax.random.split(key, count)).reshape(shape)
            return Weight(array, f"blocks.{name}", "hidden", cap, share)

        def block(key: PRNGKeyArray) -> AbstractModule:
            q, k, v, out, up, down = jax.random.split(key, 6)
            shape = (heads, width // heads, width) if granularity == "head" else (width, width)
            inner = share / OUTPUT_SCALE
            attention = Attention(
                matrix(q, "q", shape, inner, False),
                matrix(k, "k", shape, inner, False),
                matrix(v, "v", shape, inner, False),
                matrix(out, "out", (width, width), share, zero_init),
                heads,
                softmax_scale,
                OUTPUT_SCALE,
            )
            up_layer = Linear(matrix(up, "up", (4 * width, width), share, False))
            down_layer = Linear(matrix(down, "down", (width, 4 * width), share, zero_init))
            mlp = PerToken(Sequential([up_layer, GELU(gelu_divisor), down_layer]))
            return Sequential([ConvexResidual(attention, alpha), ConvexResidual(mlp, alpha)])

        rows = jax.random.normal(keys[0], (vocabulary, width, 1))
        rows = rows / jnp.sqrt(jnp.mean(rows**2, axis=1, keepdims=True)) * (1 - 1e-5)
        head = jnp.zeros((vocabulary, width)) if zero_init else semi_orthogonal(keys[1], vocabulary, width, norm)
        self.embedding = Embedding(Weight(rows, "embedding", "embedding", cap, 1 / total))
        self.stack = Stack(eqx.filter_vmap(block)(keys[2:]), depth)
        self.head = Linear(Weight(head, "head", "head", cap, 1 / total))
        self.scale = Scale(final_scale)
        check_names(self)

    def __call__(self, x: Int[Array, " time"]) -> Float[Array, "time vocabulary"]:
        hidden = self.stack(self.embedding(x))
        return self.scale(jax.vmap(self.head)(hidden))

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for module in (self.embedding, self.stack, self.head, self.scale):
            incoming = module.bound(incoming, measure)
        return incoming

    def matrices(self) -> list[Weight]:
        return [self.embedding.table, *self.stack.matrices(), self.head.weight]


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The part of a recipe that describes a GPT."""

    depth: int = 3
    """Blocks of attention and MLP."""
    width: int = 256
    """Features of a token."""
    heads: int = 4
    """Attention heads of a block."""
    granularity: Granularity = "head"
    """What caps and muon take for one matrix of q, k and v: each head, or the whole."""
    softmax_scale: float = 1.0
    """Factor on the attention logits; counts in the bound."""
    residual_scale: float = 1.0
    """Residuals are (1-α)x + αf(x) with α = this over twice the blocks."""
    final_scale: float = 1.0
    """Fixed factor on the logits; counts in the bound."""
    blocks_mass: float = 32.0
    """Mass of all blocks together in the modular norm, where embedding and head have 1 each."""
    zero_init: bool = True
    """Start the head and the last matrix of every branch at zero."""

    def refusal(self) -> str | None:
        """Why there is no such model, or None."""
        if self.depth < 1 or self.heads < 1:
            return "--depth and --heads must be at least 1"
        if self.width < 1 or self.width % (2 * self.heads):
            return f"--width must be divisible by {2 * self.heads}, twice the --heads, got {self.width}"
        if not 0 < self.residual_scale <= 2 * self.depth:
            return f"--residual-scale must be positive and at most {2 * self.depth}, got {self.residual_scale}"
        for name, value in (("softmax", self.softmax_scale), ("final", self.final_scale)):
            if not 0 < value < math.inf:
                return f"--{name}-scale must be positive and finite, got {value}"
        if not 0 < self.blocks_mass < math.inf:
            return f"--blocks-mass must be positive and finite, got {self.blocks_mass}"
        return None

    def build(self, in_size: int, out_size: int, *, key: PRNGKeyArray) -> GPT:
        """The model with fresh weights, all of them free. Tokens come from the vocabulary that they predict."""
        return GPT(out_size, key=key, **dataclasses.asdict(self))
