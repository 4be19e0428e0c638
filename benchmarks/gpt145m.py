"""Tokens a second, utilisation, memory and the parts of a step of the 145M GPT, on the device that is there.

    python -m benchmarks.gpt145m                                   # the whole model on a GPU, a small one on a CPU
    python -m benchmarks.gpt145m --variant baseline --profile /tmp/trace

The work counted is that of the model: 6 operations per weight and token, and 12·time·width per block and token for
attention (all pairs, though half of them are masked and a window leaves fewer). Utilisation is that work over what the
device does in one large product, measured here, in the same time. Rows are added to benchmarks/gpt145m.csv.
"""

import csv
import dataclasses
import functools
import time
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from benchmarks.shakespeare_step import matmul_rate, model_flops, seconds
from lipzoo.devices.mesh import make_mesh, place, spread
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import program
from lipzoo.train.plan import resolve
from lipzoo.train.state import init_state
from lipzoo.train.step import Computation, make_train_step
from recipes.gpt145m import VARIANTS


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    variant: str = "sigma8-soft-cap"
    """Settings of `recipes.gpt145m`."""
    mesh: str = "1"
    """Devices, as for the recipe."""
    batch_size: int | None = None
    """Windows a step; by default 48 on a GPU, 8 on a CPU."""
    seq_len: int | None = None
    """Tokens of a window; by default 1024 on a GPU, 256 on a CPU."""
    rounds: int = 5
    """How often everything is timed."""
    product: int = 4096
    """Rows and columns of the large product."""
    remat: str = "products"
    """What the backward pass computes anew."""
    profile: Path | None = None
    """Where to write a trace of the steps, for TensorBoard or Perfetto."""
    out: Path = FOLDER
    """Folder of gpt145m.csv, which a row is added to."""


def variant(name: str) -> Recipe:
    """The settings of this name."""
    if name not in VARIANTS:
        raise UserError(f"there is no variant {name!r}; choose from {', '.join(VARIANTS)}")
    return VARIANTS[name]


def recipe_of(line: CommandLine) -> Recipe:
    """The variant, made small where there is no accelerator."""
    recipe = variant(line.variant)
    small = jax.default_backend() == "cpu"
    size = {"depth": 4, "width": 192, "heads": 6} if small else {}
    rows, time = (8, 256) if small else (48, 1024)
    precision = "float32" if small else "bfloat16"
    model: Any = dataclasses.replace(recipe.model, remat=line.remat, window=0, window_stages=1, **size)
    return dataclasses.replace(
        recipe,
        model=model,
        data=dataclasses.replace(recipe.data, batch_size=line.batch_size or rows, seq_len=line.seq_len or time),
        optimizer=dataclasses.replace(recipe.optimizer, msign_dtype=precision),
        training=dataclasses.replace(recipe.training, mesh=line.mesh, model_dtype=precision, steps=100),
    )


def random_batch(recipe: Recipe) -> dict[str, np.ndarray]:
    """Tokens at random: time does not depend on what they say."""
    shape = (recipe.data.batch_size, recipe.data.unit[1])
    tokens = np.random.default_rng(0).integers(0, 50257, shape).astype(np.int32)
    return {"input": tokens, "label": np.roll(tokens, -1, axis=1)}


def measure(recipe: Recipe, line: CommandLine) -> dict[str, Any]:
    """Seconds of a step and of its parts, memory, tokens a second, utilisation."""
    mesh, timed = make_mesh(recipe.training.mesh), functools.partial(seconds, line.rounds)
    batch = place(random_batch(recipe), mesh)
    state: Any = init_state(recipe, mesh)
    plan, hyper = resolve(recipe)
    computation, one, key = Computation(plan, mesh), jnp.float32(1), jax.random.key(0)
    optimizer = plan.transform(functools.partial(spread, mesh))
    differentiate = jax.jit(lambda model, batch: computation.loss_and_gradient(model, batch, hyper)[1])
    known = {"hyper": hyper, "clock": jnp.int32(0), "lr": one, "fraction": one, "logits_fn": None}
    update = jax.jit(lambda gradient, state, model: optimizer.update(gradient, state, model, **known))
    gradient = differentiate(state.model, batch)
    parts = {
        "forward and backward": timed(differentiate, state.model, batch),
        "optimizer": timed(update, gradient, state.opt_state, state.model),
        "constraint": timed(
            jax.jit(lambda m, u: computation.constrain(m, u, jnp.int32(0), hyper, key)), state.model, gradient
        ),
    }
    rate = matmul_rate(line.rounds, line.product, recipe.training.model_dtype)
    floor = model_flops(recipe, state.model) / (rate * mesh.size)
    del gradient
    jitted: Any = make_train_step(plan, mesh)
    step = jitted.lower(state, batch, hyper).compile()
    memory = step.memory_analysis()
    if line.profile is not None:
        jax.profiler.start_trace(str(line.profile))
    times = []
    for _ in range(line.rounds + 1):
        start = time.perf_counter()
        state, _ = step(state, batch, hyper)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
    if line.profile is not None:
        jax.profiler.stop_trace()
    whole = float(np.median(times[1:]))
    tokens = recipe.data.batch_size * recipe.data.unit[1]
    return {
        "seconds": whole,
        "tokens a second": tokens / whole,
        "utilisation": floor / whole,
        "gigabytes": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 1e9,
        "parameters": sum(x.size for x in jax.tree.leaves(state.model)),
    } | {f"{name}, share": value / whole for name, value in parts.items()}


def main() -> None:
    """Prints the table and adds a row to the file."""
    line = tyro.cli(CommandLine, prog=program(), description="A step of the 145M GPT.")
    recipe = recipe_of(line)
    recipe.check()
    about = {
        "date": str(date.today()),
        "device": f"{make_mesh(line.mesh).size} × {jax.devices()[0].device_kind}",
        "variant": line.variant,
        "batch": f"{recipe.data.batch_size}×{recipe.data.unit[1]}",
        "precision": recipe.training.model_dtype,
    }
    row = about | {name: f"{value:.4g}" for name, value in measure(recipe, line).items()}
    table = Table("quantity", "value", title="benchmarks.gpt145m")
    for name, value in row.items():
        table.add_row(name, value)
    Console().print(table)
    output = line.out / "gpt145m.csv"
    fresh = not output.exists()
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    benchmark(main)
