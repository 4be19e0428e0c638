"""What ellipsoids gain over the layers one by one, and what they cost, on networks with fresh weights.

python -m benchmarks.ellipsoids
"""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import benchmark
from lipzoo.certify.measured import ExactNorms
from lipzoo.certify.tighten import STEPS, tightest
from lipzoo.models import MLP
from lipzoo.system.terminal import program
from lipzoo.theory.bound import Bound
from lipzoo.theory.weight import map_weights


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    inputs: int = 3072
    """Entries of the input; 10 classes."""
    sizes: tuple[tuple[int, int], ...] = ((256, 3), (256, 10), (1024, 10))
    """Widths and depths."""
    steps: int = STEPS
    """Steps of the search for multipliers, at most."""


def main() -> None:
    """Prints a row for every network."""
    line = tyro.cli(CommandLine, prog=program(), description="Ellipsoids against the layers one by one.")
    columns = ("width × depth", "spectrum", "layers", "equal multipliers", "sought", "seconds")
    table = Table(*columns, title="Bounds, as ratios")
    for width, depth in line.sizes:
        for spectrum in ("Gaussian", "flat"):
            table.add_row(f"{width} × {depth}", spectrum, *_row(line, width, depth, spectrum))
    Console().print(table)


def _row(line: CommandLine, width: int, depth: int, spectrum: str) -> list[str]:
    model = MLP(line.inputs, width, 10, depth=depth, zero_init=False, cap=1.0, key=jax.random.key(0))
    if spectrum == "Gaussian":
        draw = np.random.default_rng(0).normal
        model = map_weights(lambda w: w.with_array(jnp.asarray(draw(size=w.array.shape), jnp.float32)), model)
        model = map_weights(lambda w: w.with_array(w.array / math.sqrt(w.array.shape[1])), model)
    model, start = jax.tree.map(np.asarray, model), Bound.start(model.takes)  # pyright: ignore[reportArgumentType]
    exact = ExactNorms()
    layers = float(model.bound(start, exact).lipschitz) * math.sqrt(10 / line.inputs)
    begin = time.perf_counter()
    found = [ellipsoid.lipschitz / layers for ellipsoid, _ in tightest(model, start, exact, line.steps)]
    seconds = time.perf_counter() - begin
    return ["1", f"{found[0]:.3f}", f"{found[1]:.3f}" if len(found) > 1 else "not sought", f"{seconds:.1f}"]


if __name__ == "__main__":
    benchmark(main)
