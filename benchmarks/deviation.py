"""How far networks are from what is meant when they run: proved, and found.

python -m benchmarks.deviation RUN [RUN …]        # of checkpoints, in every format
python -m benchmarks.deviation --large            # of a fresh GPT of 145M parameters as recipes.gpt145m trains it

Found is the largest distance to the same network in float64 on random inputs (a softmax stays in float32 there). The
last columns are the time of a certificate, and that of one with its arithmetic, as a ratio.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import lipzoo
from benchmarks import benchmark
from lipzoo.certify.certificate import Certificate
from lipzoo.certify.deviation import stored
from lipzoo.models import AbstractModule
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program
from lipzoo.theory.functions import Format, arithmetic
from lipzoo.theory.precision import computing
from lipzoo.theory.space import Symbols, Vector
from recipes import gpt145m

FORMATS: tuple[Format, ...] = ("float32", "tf32", "bfloat16", "float8_e4m3fn")


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Runs to look at."""
    large: bool = False
    """Look at a fresh GPT of 145M parameters."""
    examples: int = 64
    """Inputs that are tried, of texts windows: a sixteenth of these."""


def main() -> None:
    """Prints a row for every model and format."""
    line = tyro.cli(CommandLine, prog=program(), description="Deviation: proved and found.")
    if not line.runs and not line.large:
        raise UserError("give runs, or --large")
    table = Table("model", "format", "proved", "found", "ratio", "seconds", "with arithmetic")
    for run in line.runs:
        loaded = lipzoo.load(run)
        _, window = loaded.recipe.data.unit
        rows(table, str(run), loaded.model, window or 1, line.examples)
    if line.large:
        recipe = gpt145m.VARIANTS["sigma1"]
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, zero_init=False))
        model = recipe.build_model(jax.random.key(0))
        rows(table, "gpt145m", model, recipe.data.unit[1] or 1, 16)
    Console(width=140).print(table)


def rows(table: Table, name: str, model: AbstractModule, window: int, examples: int) -> None:
    """The rows of one model."""
    x = inputs(model, window, examples)
    true = in_float64(model, x)
    start = time.perf_counter()
    Certificate.of(model, window=window)
    plain = time.perf_counter() - start
    for dtype in FORMATS:
        start = time.perf_counter()
        running = Certificate.of(model, window=window, arithmetic=arithmetic(dtype)).running
        seconds = time.perf_counter() - start
        assert running is not None
        found = float(np.sqrt(((in_format(model, x, dtype) - true) ** 2).mean(-1)).max())
        cells = f"{running.deviation:.3g}", f"{found:.3g}", f"{running.deviation / found:.3g}"
        table.add_row(name, dtype, *cells, f"{plain:.2f}", f"{seconds / plain:.2f}")


def inputs(model: AbstractModule, window: int, examples: int) -> np.ndarray:
    """Random inputs: pixels in [0, 1], some at the ends; tokens."""
    rng, space = np.random.default_rng(0), model.takes
    if isinstance(space, Symbols):
        return rng.integers(0, space.count, size=(max(examples // 16, 1), window)).astype(np.int32)
    assert isinstance(space, Vector)
    x = rng.uniform(size=(examples, *space.shape)).astype(np.float32)
    return np.where(np.arange(examples).reshape(-1, *[1] * len(space.shape)) % 2, x, np.round(x))


@jax.jit
def _many(model: AbstractModule, x: Any) -> Any:
    return jax.lax.map(model, x)


def in_float64(model: AbstractModule, x: np.ndarray) -> np.ndarray:
    """Outputs in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: jnp.asarray(np.asarray(array), jnp.float64), model)
        return np.asarray(_many(wide, jnp.asarray(x if x.dtype == np.int32 else x.astype(np.float64))))


def in_format(model: AbstractModule, x: np.ndarray, dtype: Format) -> np.ndarray:
    """Outputs as they run; of tf32 in float32, since only tensor cores know it."""
    low = computing("float32" if dtype == "tf32" else dtype)
    cut = jax.tree.map(lambda array: jnp.asarray(array).astype(low), stored(jax.tree.map(np.asarray, model), dtype))
    return np.asarray(_many(cut, jnp.asarray(x) if x.dtype == np.int32 else jnp.asarray(x, low)), np.float64)


if __name__ == "__main__":
    benchmark(main)
