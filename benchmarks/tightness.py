"""How loose certificates are: certified constant over the largest gain that an attack finds.

python -m benchmarks.tightness                     # fresh GPTs with unit norms per head
python -m benchmarks.tightness RUN [RUN ...]       # trained ones
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Key
from rich.console import Console
from rich.table import Table

import lipzoo
from benchmarks import benchmark
from lipzoo.certify.certificate import Certificate
from lipzoo.models import GPT, GPTConfig
from lipzoo.sample import text_model
from lipzoo.system.terminal import program

FRESH = {
    "fresh, unit norms, s = 1": GPTConfig(zero_init=False),
    "fresh, unit norms, s = 8": GPTConfig(zero_init=False, softmax_scale=8.0),
    "fresh, no attention to content, maxmin": GPTConfig(
        heads=16, softmax_scale=0.0, attention_scale=1.0, relative_bias=32, activation="maxmin", zero_init=False
    ),
}


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Runs to attack; by default fresh models."""
    time: int = 32
    """Tokens of a sequence."""
    starts: int = 16
    """Sequences attacked at once."""
    steps: int = 300
    """Steps of the ascent."""


def token_norms(x: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
    return jnp.sqrt(jnp.mean(x**2, axis=-1) + 1e-30)  # √ has no slope at zero.


def attack(gpt: GPT, line: CommandLine, key: Key[Array, ""]) -> float:
    """The largest gain of the last token's logits that is found, over sequences in the ball and their changes.

    Both are measured by their largest token. For a sequence x the change v follows by the power iteration of this pair
    of norms, v_t ← g_t/‖g_t‖ with g = Jᵀ(Jv); x climbs along the gradient of the gain with falling steps. The starts
    are the model's own tokens at random.
    """
    table = gpt.embedding.table.array[..., 0]
    radius = token_norms(table).max()

    def gain(x: Float[Array, "time d"], v: Float[Array, "time d"]) -> Float[Array, ""]:
        change = jax.jvp(lambda x: gpt.logits(gpt.stack(x))[-1], (x,), (v,))[1]
        return token_norms(change) / token_norms(v).max()

    def climb(x: Float[Array, "time d"], v: Float[Array, "time d"], size: Float[Array, ""]) -> tuple[Array, Array]:
        gx, gv = jax.grad(gain, argnums=(0, 1))(x, v)
        x = x + size * gx / (token_norms(gx).max() + 1e-12)
        return x * jnp.minimum(1, radius / token_norms(x))[:, None], gv / (token_norms(gv)[:, None] + 1e-12)

    def best(key: Key[Array, ""]) -> Float[Array, ""]:
        chosen, drawn = jax.random.split(key)
        x = table[jax.random.randint(chosen, (line.time,), 0, len(table))]
        v = jax.random.normal(drawn, x.shape)
        for _ in range(5):
            v = climb(x, v, jnp.zeros(()))[1]
        sizes = 0.1 * radius * jnp.linspace(1.0, 0.0, line.steps)
        (x, v), gains = jax.lax.scan(lambda c, s: (climb(*c, s), gain(*c)), (x, v), sizes)
        return jnp.maximum(gains.max(), gain(x, v))

    return float(jax.jit(lambda: jax.vmap(best)(jax.random.split(key, line.starts)))().max())


def main() -> None:
    """Prints a row for every model."""
    line = tyro.cli(CommandLine, prog=program(), description="Certified constants over attacked ones.")
    models = {run.name: text_model(lipzoo.load(run))[0] for run in line.runs} or {
        name: GPT(65, config, cap=1.0, key=jax.random.key(0)) for name, config in FRESH.items()
    }
    table = Table("model", "certified L", "largest gain found", "ratio")
    for name, model in models.items():
        certified, found = Certificate.of(model).lipschitz, attack(model, line, jax.random.key(1))
        table.add_row(name, f"{certified:.4g}", f"{found:.4g}", f"{certified / found:.3g}")
    Console().print(table)


if __name__ == "__main__":
    benchmark(main)
