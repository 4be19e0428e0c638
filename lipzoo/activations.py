"""`python -m lipzoo.activations checkpoint_dir`: how large a transformer's activations are, block by block."""

import dataclasses
import itertools
import math
import sys
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int
from rich.table import Table

from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Count
from lipzoo.layers.base import Mask
from lipzoo.layers.compose import AbstractResidual
from lipzoo.models import GPT, AbstractModule, PerToken, Sequential
from lipzoo.system.errors import UserError
from lipzoo.system.paths import UserPath
from lipzoo.system.progress import waiting
from lipzoo.system.streams import make_console
from lipzoo.system.terminal import guarded, program
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import format_power
from lipzoo.theory.weight import exact_norm
from lipzoo.train.load import load


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    checkpoint_dir: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it; the newest step is taken. Or an exported file, or zoo:NAME."""
    windows: Count = 8
    """Windows of the test split to look at: the first ones."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What was seen at one place of the network, and what no token there can exceed.

    **Attributes:**

    - `largest`: the largest absolute value of an entry, of a block also of one inside it.
    - `rms`: the RMS over all entries and tokens of what comes out.
    - `largest_rms`: the largest RMS norm of a token that comes out.
    - `bound`: the certified upper bound of that norm.
    """

    place: str
    largest: float
    rms: float
    largest_rms: float
    bound: float


def trace(module: AbstractModule, x: Float[Array, "..."], mask: Mask) -> list[Float[Array, "..."]]:
    """What the layers inside a module give, one after the other; the last is its output.

    Of an attention that is its output alone.
    """
    if isinstance(module, Sequential):
        results: list[Array] = []
        for layer in module.layers:
            results += trace(layer, results[-1] if results else x, mask)
        return results
    if isinstance(module, AbstractResidual):
        inner = trace(module.branch, x, mask)
        return [*inner, module.combine(x, inner[-1])]
    if isinstance(module, PerToken):
        return jax.vmap(lambda token: trace(module.module, token, mask))(x)
    return [module.masked(x, mask)]


@jax.jit
def _measure(gpt: GPT, tokens: Int[Array, "batch time"]) -> tuple[Array, Array, Array]:
    """Largest entry, RMS and largest RMS norm of a token: of the embedding, of each block, of the logits."""

    def sizes(inner: list[Array]) -> tuple[Array, Array, Array]:
        square = jnp.mean(inner[-1] ** 2, axis=-1)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in inner]))
        return largest, jnp.mean(square), jnp.max(square)

    def one(tokens: Int[Array, " time"]) -> tuple[Array, ...]:
        def run(x: Array, block: AbstractModule) -> tuple[Array, tuple[Array, Array, Array]]:
            inner = trace(block, x, gpt.mask(tokens))
            return inner[-1], sizes(inner)

        first = gpt.embedding(tokens)
        last, blocks = jax.lax.scan(run, first, gpt.stack.blocks)
        ends = sizes([first]), sizes([gpt.logits(last)])
        return tuple(jnp.concatenate([a[None], b, c[None]]) for a, b, c in zip(ends[0], blocks, ends[1], strict=True))

    largest, square, largest_square = jax.lax.map(one, tokens)
    return largest.max(0), jnp.sqrt(square.mean(0)), jnp.sqrt(largest_square.max(0))


def measure(gpt: GPT, tokens: Int[np.ndarray, "batch time"]) -> list[Row]:
    """The sizes of activations on these windows, in float32."""
    hollow = jax.tree.map(np.asarray, gpt)
    blocks = [hollow.stack.block(index) for index in range(gpt.config.depth)]
    modules = [hollow.embedding, *blocks, hollow.ends]
    start = Bound.start(hollow.takes)
    bounds = itertools.accumulate(modules, lambda bound, module: module.bound(bound, exact_norm), initial=start)
    places = ["embedding", *(f"block {index}" for index in range(gpt.config.depth)), "logits"]
    seen = np.stack(jax.device_get(_measure(gpt, jnp.asarray(tokens))), axis=1).tolist()
    limits = [float(bound.radius) for bound in bounds][1:]
    rows = zip(places, seen, limits, strict=True)
    return [Row(place, largest, rms, token, limit) for place, (largest, rms, token), limit in rows]


def _main() -> int:
    line = tyro.cli(
        CommandLine, prog=program(), description="Measures the activations of a transformer on its test split."
    )
    if refusal := field_refusal(line):
        raise UserError(refusal)
    loaded = load(line.checkpoint_dir)
    if not isinstance(loaded.model, GPT):
        raise UserError(f"{loaded.path} holds no transformer: it was trained on {loaded.recipe.data.data}")
    test = loaded.recipe.data.load(loaded.recipe.training.seed).tests["val"]
    table = Table("place", *("largest entry", "RMS", "largest RMS of a token", "certified bound"), title="Activations")
    with waiting("measuring", None):
        rows = measure(loaded.model, test.input[: line.windows].astype(np.int32))
    for row in rows:
        seen = (f"{value:.4g}" for value in (row.largest, row.rms, row.largest_rms))
        table.add_row(row.place, *seen, format_power(math.log10(row.bound) if row.bound else -math.inf))
    make_console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
