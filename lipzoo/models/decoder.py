"""A GPT taken apart to go on with a text token by token."""

from typing import cast

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from lipzoo.layers.base import AbstractModule, Cache, Position
from lipzoo.layers.compose import Sequential
from lipzoo.layers.embedding import Embedding
from lipzoo.models.gpt import GPT
from lipzoo.models.gpt_config import GPTConfig

Caches = tuple[Cache, ...]
"""Keys and values of all blocks."""


class Decoder(eqx.Module):
    """The parts of a GPT, each block with arrays of its own.

    A loop over tokens reads them where they lie. Out of a stack they would be cut, and copied, for every token.
    """

    embedding: Embedding
    blocks: tuple[AbstractModule, ...]
    ends: Sequential
    config: GPTConfig = eqx.field(static=True)

    @staticmethod
    def of(gpt: GPT) -> "Decoder":
        """The parts of a model, on its first device. NumPy cuts the stack up, since jax would compile that."""
        stacked = jax.tree.map(np.asarray, gpt.stack.blocks)
        blocks = tuple(jax.tree.map(lambda a, i=index: a[i], stacked) for index in range(gpt.stack.depth))
        parts = Decoder(gpt.embedding, cast(tuple[AbstractModule, ...], blocks), gpt.ends, gpt.config)
        return jax.device_put(parts, min(gpt.head.weight.array.devices(), key=lambda device: device.id))

    def empty(self, room: int) -> Caches:
        """Room for the keys and values of so many tokens."""
        heads, place = self.config.heads, self.embedding.table.array.sharding
        zero = np.zeros((heads, self.config.width // heads, room), np.float32)
        return tuple((jax.device_put(zero, place), jax.device_put(zero, place)) for _ in self.blocks)

    def extend(
        self, x: Int[Array, " time"], caches: Caches, first: Position
    ) -> tuple[Float[Array, "time vocabulary"], Caches]:
        """Logits of further tokens of one document (see `AbstractModule.extend`)."""
        hidden, grown = self.embedding(x), []
        for block, cache in zip(self.blocks, caches, strict=True):
            hidden, cache = block.extend(hidden, cache, first)
            grown.append(cache)
        return self.ends(hidden), tuple(grown)
