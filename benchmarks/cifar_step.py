"""Time of one CIFAR-10 training step against its floor, the time of its matrix products alone.

    python -m benchmarks.cifar_step

The matrix products are read from the traced step, so that none is forgotten, and each is timed by itself in its own
shape. Everything is measured in interleaved rounds of one process; medians are reported.
"""

import collections
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from rich.console import Console
from rich.table import Table

from benchmarks import benchmark
from lipzoo.data import Augment, Images, Split
from lipzoo.devices.mesh import batched, make_mesh
from lipzoo.layers.product import product_p
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from recipes.cifar_mlp import RECIPE

Shapes = tuple[tuple[int, ...], tuple[int, ...], Any]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    rounds: int = 11
    """Rounds in which every step is timed."""
    steps: int = 12
    """Steps of each in a round."""
    variants: tuple[str, ...] = ()
    """What to measure beside 'adamw, none'; by default all."""


def variants() -> dict[str, Recipe]:
    """AdamW, Muon alone, and Muon with every constraint but svd-cap, whose LAPACK calls slow whatever runs next."""
    adamw = dataclasses.replace(RECIPE.optimizer, optimizer="adamw", lr=0.003, weight_decay=0.1)
    free, decay = ConstraintConfig("none"), dataclasses.replace(RECIPE.optimizer, weight_decay=0.1)
    table = {
        "adamw, none": dataclasses.replace(RECIPE, optimizer=adamw, constraint=free),
        "muon, none": dataclasses.replace(RECIPE, constraint=free),
        "muon, weight-decay": dataclasses.replace(RECIPE, optimizer=decay, constraint=ConstraintConfig("weight-decay")),
    }
    names = ("soft-cap", "hard-cap", "hard-cap-poly", "spectral-normalize", "stiefel", "spectral-hammer")
    for name in (*names, "spectral-weight-decay"):
        table[f"muon, {name}"] = dataclasses.replace(
            RECIPE, constraint=ConstraintConfig(name, sigma_max=RECIPE.constraint.sigma_max)
        )
    return table


def products(jaxpr: Jaxpr) -> Iterator[Shapes]:
    """Every matrix product of a traced function.

    The body of a loop counts once, as the soft cap runs it here; of the branches of a condition the one with the least
    work counts, which is the one that is taken: the others are there for what a test fails to prove.
    """
    for equation in jaxpr.eqns:
        avals: list[Any] = [v.aval for v in equation.invars]
        shapes = [aval.shape for aval in avals]
        if equation.primitive.name == "dot_general":
            yield shapes[0], shapes[1], equation.params["dimension_numbers"]
        if equation.primitive is product_p:
            axes = tuple(range(equation.params["batch"]))
            yield shapes[0], shapes[1], (((len(shapes[0]) - 1,), (len(shapes[1]) - 1,)), (axes, axes))
        if equation.primitive.name == "cond":
            branches = [list(products(branch.jaxpr)) for branch in equation.params["branches"]]
            yield from min(branches, key=lambda branch: sum(map(flops, branch)))
            continue
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(part, ClosedJaxpr):
                    yield from products(part.jaxpr)
                elif isinstance(part, Jaxpr):
                    yield from products(part)


def flops(shapes: Shapes) -> int:
    """Two operations per multiply-add."""
    left, right, ((_, contracted), (_, batch)) = shapes
    kept = [size for axis, size in enumerate(right) if axis not in (*contracted, *batch)]
    return 2 * int(np.prod(left)) * int(np.prod(kept))


def product_time(shapes: Shapes) -> float:
    """Seconds of one product by itself: the best of several runs of many."""
    left, right, dimensions = shapes
    a, b = (jnp.asarray(np.random.default_rng(0).normal(size=s), jnp.float32) for s in (left, right))
    run = jax.jit(lambda a, b: jax.lax.dot_general(a, b, dimensions, precision="highest"))
    run(a, b).block_until_ready()
    repeats = min(max(4, int(2e9 / flops(shapes))), 300)
    return (
        min(_seconds(lambda: [run(a, b) for _ in range(repeats)][-1].block_until_ready()) for _ in range(5)) / repeats
    )


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Stepper:
    """One compiled step with its state, run over batches that lie on the device."""

    def __init__(self, recipe: Recipe, data: list[dict[str, Any]]):
        self.mesh = make_mesh()
        self._step = step_of(recipe, self.mesh)
        self._state = init_state(recipe, self.mesh)
        self._data = [jax.device_put(batch, batched(self.mesh)) for batch in data]
        traced = jax.make_jaxpr(self._step)(self._state, self._data[0]).jaxpr
        live, _ = dce_jaxpr(traced, [True] * len(traced.outvars))  # The compiler drops what no output needs.
        self.products = collections.Counter(products(live))
        self.run()

    def run(self) -> float:
        """Seconds a step, over one pass of the batches."""
        metrics, start = None, time.perf_counter()
        for batch in self._data:
            self._state, metrics = self._step(self._state, batch)
        jax.block_until_ready((self._state, metrics))
        return (time.perf_counter() - start) / len(self._data)


def main() -> None:
    """Prints the table."""
    line = tyro.cli(
        CommandLine, prog=program(), description="One CIFAR-10 step against the time of its matrix products."
    )
    known = variants()
    if unknown := set(line.variants) - set(known):
        raise UserError(f"there are no variants {', '.join(sorted(unknown))}; choose from {'; '.join(known)}")
    chosen = {name: known[name] for name in dict.fromkeys(("adamw, none", *(line.variants or known)))}
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (50_000, 3072), np.uint8), random.integers(0, 10, 50_000, np.int32))
    images = Images(split, split, 255, 10, (3, 32, 32), Augment((3, 32, 32), flip=True, shift=2))
    stream = images.batches(batch_size=512, count=line.steps, seed=0)
    next(stream)
    pipeline = _seconds(lambda: [next(stream) and None for _ in range(line.steps - 1)]) / (line.steps - 1)
    data = list(images.batches(batch_size=512, count=line.steps, seed=0))
    steppers = {name: Stepper(recipe, data) for name, recipe in chosen.items()}
    rounds = [{name: stepper.run() for name, stepper in steppers.items()} for _ in range(line.rounds)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in steppers}
    alone = {shapes: product_time(shapes) for shapes in set().union(*(s.products for s in steppers.values()))}
    columns = ("ms a step", "products, ms", "ratio", "GFLOP", "GFLOP/s in products", "÷ adamw")
    table = Table(
        "CIFAR-10 MLP, batch 512", *columns, title=f"{date.today()}, {platform.processor() or platform.machine()}"
    )
    for name, stepper in steppers.items():
        floor = sum(alone[shapes] * count for shapes, count in stepper.products.items())
        work = sum(flops(shapes) * count for shapes, count in stepper.products.items())
        cells = (1e3 * medians[name], 1e3 * floor, medians[name] / floor, work / 1e9, work / floor / 1e9)
        table.add_row(name, *(f"{cell:.3g}" for cell in cells), f"{medians[name] / medians['adamw, none']:.2f}")
    console = Console(width=130)
    console.print(table)
    console.print(f"data pipeline with random flips and shifts: {1e3 * pipeline:.2f} ms a batch")


if __name__ == "__main__":
    benchmark(main)
