"""Attacks of this library beside those of foolbox: how near they come, how many they fool, how long it takes.

    pip install foolbox eagerpy                 # foolbox 3.3 runs JAX models as they are
    python -m benchmarks.attacks RUN [RUN …]

Both are given the same steps and restarts: projected gradient at each ε (foolbox's has no momentum and follows the
cross-entropy), and decoupled direction and norm for the nearest input of another class. Times include compiling.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from benchmarks import benchmark
from lipzoo.data import DataConfig
from lipzoo.evaluate.attack import Strength
from lipzoo.evaluate.radii import as_input
from lipzoo.evaluate.run import Effort, evaluate
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program
from lipzoo.train.checkpoint import Loaded, load

EPSILONS = (36 / 255, 72 / 255, 108 / 255, 1.0)
Distances = Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Runs to attack."""
    images: int = 500
    """Test images, the first ones."""
    steps: int = 40
    """Steps of the projected gradient."""
    restarts: int = 3
    """Its starts."""
    boundary_steps: int = 100
    """Steps of the search for the nearest input of another class."""


def ours(run: Path, line: CommandLine) -> Distances:
    """The nearest adversaries that `lipzoo.evaluate` finds."""
    strength = Strength(line.steps, line.restarts, line.boundary_steps)
    effort = Effort(line.images, local=False, tightness=False, strength=strength, tighten=0)
    found = evaluate(run, EPSILONS, effort).attacked
    assert found is not None
    return np.asarray(found.distance)


def foolbox(loaded: Loaded, line: CommandLine) -> Distances:
    """The nearest that foolbox finds, of both of its attacks."""
    try:
        from foolbox.attacks import L2PGD, DDNAttack  # pyright: ignore[reportMissingImports]
        from foolbox.models import JAXModel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("this compares with foolbox: pip install foolbox eagerpy") from error
    data = loaded.recipe.data
    assert isinstance(data, DataConfig)
    test = data.load(loaded.recipe.training.seed).tests["val"]
    images = jnp.asarray(as_input(test.input[: line.images], data.white))
    labels = jnp.asarray(test.label[: line.images].astype(np.int32))
    model: Any = JAXModel(jax.jit(lambda x: loaded.recipe.training.temperature * jax.vmap(loaded.model)(x)), (0, 1))
    best = np.full(len(images), np.inf)

    def take(adversaries: Any, fooled: Any) -> None:
        distance = np.linalg.norm(np.asarray(adversaries, np.float64) - np.asarray(images, np.float64), axis=1)
        np.minimum(best, np.where(np.asarray(fooled), distance, np.inf), out=best)

    adversaries, _, fooled = DDNAttack(steps=line.boundary_steps)(model, images, labels, epsilons=None)
    take(adversaries, fooled)
    for epsilon in EPSILONS:
        for _ in range(line.restarts):
            adversaries, _, fooled = L2PGD(steps=line.steps)(model, images, labels, epsilons=epsilon)
            take(adversaries, fooled)
    return best


def timed(attack: Callable[[], Distances]) -> tuple[Distances, float]:
    start = time.perf_counter()
    return attack(), time.perf_counter() - start


def main() -> None:
    """Prints two rows for every run."""
    line = tyro.cli(CommandLine, prog=program(), description="Attacks beside those of foolbox.")
    names = [f"at {epsilon:.3f}" for epsilon in EPSILONS]
    table = Table("run", "attack", "median distance", *names, "nearer", "seconds", title="Accuracy under attack")
    for run in line.runs:
        found = {
            "lipzoo": timed(lambda run=run: ours(run, line)),
            "foolbox": timed(lambda run=run: foolbox(load(run), line)),
        }
        right = found["lipzoo"][0] > 0
        for name, (distance, seconds) in found.items():
            other = found["foolbox" if name == "lipzoo" else "lipzoo"][0]
            kept = [f"{(np.where(right, distance, 0) > epsilon).mean():.1%}" for epsilon in EPSILONS]
            nearer = (distance < other * (1 - 1e-3))[right].mean()
            table.add_row(run.name, name, f"{np.median(distance[right]):.4f}", *kept, f"{nearer:.1%}", f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    benchmark(main)
