"""Steps of lipzoo and of another program, one after the other in one process, against the time of their work.

    python -m benchmarks.against FILE.py          # with a function make(name) → a function that runs one step and waits
    python -m benchmarks.against                  # lipzoo alone

Names are `gpt` (width 256, 3 blocks, 4 heads, 65 characters, batch 64×256, Muon, soft cap 2), `mlp` (3072-256-256-10,
batch 512, Muon, soft cap 3) and `mlp-adamw` (the same without a cap). The floor is the model's work, 6 operations per
weight and token or image and 12·time·width per block and token, at the rate of one large matrix product, which is
measured in every round. Ratios are of medians.
"""

import dataclasses
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import benchmark
from benchmarks.shakespeare_step import model_flops
from lipzoo.data import TextConfig
from lipzoo.devices.mesh import make_mesh, place
from lipzoo.models import GPTConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program
from lipzoo.theory.weight import weights
from lipzoo.train.state import init_state
from lipzoo.train.step import step_of
from recipes.cifar_mlp import RECIPE as MLP
from recipes.shakespeare_gpt import RECIPE as GPT

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """Python file of the other program, run as it is."""
    names: tuple[str, ...] = ("gpt", "mlp", "mlp-adamw")
    """What to compare."""
    rounds: int = 7
    """Rounds in which everything is timed."""
    product: int = 4096
    """Rows and columns of the large product."""


def ways() -> Mapping[str, Mapping[str, Recipe]]:
    """By name, ways to compute what has that name."""
    text, cap = TextConfig(data="synthetic", batch_size=64, seq_len=256), ConstraintConfig("soft-cap", sigma_max=2.0)
    published = GPTConfig(remat="none", granularity="matrix")
    gpt = dataclasses.replace(GPT, model=published, data=text, constraint=cap)
    soft = ConstraintConfig("soft-cap", sigma_max=3.0)
    muon = {name: dataclasses.replace(MLP.optimizer, polynomial=name) for name in ("six-row", "polar-express", "turbo")}
    adamw = dataclasses.replace(MLP.optimizer, optimizer="adamw", lr=0.003, weight_decay=0.1)
    mlp = {f"lipzoo, {name}": dataclasses.replace(MLP, optimizer=muon[name], constraint=soft) for name in muon}
    lazy = dataclasses.replace(soft, project_every=4)
    hard = dataclasses.replace(soft, constraint="hard-cap")
    mlp |= {
        "lipzoo, turbo, every 4": dataclasses.replace(MLP, optimizer=muon["turbo"], constraint=lazy),
        "lipzoo, polar-express, hard cap": dataclasses.replace(MLP, optimizer=muon["polar-express"], constraint=hard),
        "lipzoo, polar-express, none": dataclasses.replace(
            MLP, optimizer=muon["polar-express"], constraint=ConstraintConfig("none")
        ),
    }
    free = dataclasses.replace(MLP, optimizer=adamw, constraint=ConstraintConfig("none"))
    return {"gpt": {"lipzoo": gpt}, "mlp": mlp, "mlp-adamw": {"lipzoo": free}}


def random_batch(recipe: Recipe) -> dict[str, np.ndarray]:
    """Random pixels or characters: time does not depend on what they are."""
    draw, (inner, classes, _) = np.random.default_rng(0), recipe.complete().data.sizes
    if recipe.model.embeds:
        tokens = draw.integers(0, classes, (recipe.data.batch_size, recipe.data.unit[1]), np.int32)
        return {"input": tokens, "label": np.roll(tokens, -1, axis=1)}
    images = draw.integers(0, 256, (recipe.data.batch_size, inner), np.uint8)
    return {"input": images, "label": draw.integers(0, classes, len(images), np.int32)}


def lipzoo_step(recipe: Recipe) -> Run:
    """Runs one compiled step after the other, and waits for each."""
    recipe = recipe.complete()
    mesh = make_mesh()
    step, state, batch = step_of(recipe, mesh), [init_state(recipe, mesh)], place(random_batch(recipe), mesh)

    def run() -> None:
        state[0], _ = step(state[0], batch)
        jax.block_until_ready(state[0])

    return run


def work(recipe: Recipe) -> float:
    """The model's operations in a step."""
    recipe = recipe.complete()
    model: Any = recipe.abstract_model()
    if recipe.model.embeds:
        return model_flops(recipe, model)
    first, *others = (weight.array.size for weight in weights(model))
    return recipe.data.batch_size * (4 * first + 6 * sum(others))  # No gradient of pixels.


def other_steps(file: Path) -> Callable[[str], Run]:
    """The function `make` of a file."""
    spec = importlib.util.spec_from_file_location("other", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UserError(f"there is no Python file {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make


def timed(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turns, after a first call that compiles."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Prints a table for each name."""
    line = tyro.cli(CommandLine, prog=program(), description="Steps of lipzoo and of another program in turns.")
    known, make = ways(), None if line.file is None else other_steps(line.file)
    if unknown := set(line.names) - set(known):
        raise UserError(f"there are no names {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    large = jnp.asarray(np.random.default_rng(0).normal(size=(line.product, line.product)), jnp.float32)
    product = jax.jit(jnp.matmul)
    console = Console(width=110)
    for name in line.names:
        runs: dict[str, Run] = {"product": lambda: product(large, large).block_until_ready()}
        runs |= {} if make is None else {"the other": make(name)}
        runs |= {way: lipzoo_step(recipe) for way, recipe in known[name].items()}
        medians = timed(runs, line.rounds)
        rate = 2 * line.product**3 / medians.pop("product")
        floor = work(next(iter(known[name].values()))) / rate
        title = f"{date.today()}, {platform.processor() or platform.machine()}, product {rate / 1e9:.0f} GFLOP/s"
        table = Table(name, "ms a step", "÷ floor", "÷ the first", title=title)
        first = next(iter(medians.values()))
        for way, value in medians.items():
            table.add_row(way, f"{1e3 * value:.4g}", f"{value / floor:.2f}", f"{value / first:.2f}")
        console.print(table)


if __name__ == "__main__":
    benchmark(main)
