"""How loose certificates are: certified constant over the largest gain that an attack finds.

python -m benchmarks.tightness                     # fresh GPTs with unit norms per head
python -m benchmarks.tightness RUN [RUN ...]       # trained ones
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import lipzoo
from benchmarks import benchmark
from lipzoo.certify.certificate import Certificate
from lipzoo.certify.measured import ExactNorms
from lipzoo.evaluate.tightness import Tightness, tightness
from lipzoo.models import GPT, GPTConfig
from lipzoo.sample import text_model
from lipzoo.system.terminal import program
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Tokens

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


def largest(gpt: GPT, line: CommandLine) -> Tightness:
    """The largest gain found, over sequences in the embedding's ball, from random ones of the model's own tokens."""
    rows = np.asarray(gpt.embedding.table.array)[..., 0]
    tokens = np.random.default_rng(1).integers(0, len(rows), (line.starts, line.time))
    start = Bound.start(Tokens(rows.shape[1]), float(np.sqrt((rows**2).mean(1)).max()))
    certified = Certificate.of(gpt).lipschitz
    return tightness(gpt, start, jnp.asarray(rows[tokens]), ExactNorms(), certified)[0]


def main() -> None:
    """Prints a row for every model."""
    line = tyro.cli(CommandLine, prog=program(), description="Certified constants over attacked ones.")
    models = {run.name: text_model(lipzoo.load(run))[0] for run in line.runs} or {
        name: GPT(65, config, cap=1.0, key=jax.random.key(0)) for name, config in FRESH.items()
    }
    table = Table("model", "certified L", "largest gain found", "ratio")
    for name, model in models.items():
        _, found, certified = largest(model, line)
        table.add_row(name, f"{certified:.4g}", f"{found:.4g}", f"{certified / found:.3g}")
    Console().print(table)


if __name__ == "__main__":
    benchmark(main)
