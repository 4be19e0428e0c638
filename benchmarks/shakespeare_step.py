"""Where a step of the published Shakespeare GPT (2.4M parameters) goes, against the time of its work; certify, sample.

    python -m benchmarks.shakespeare_step [--accum-steps 16]

The work counted is that of the model: 6 operations per weight and token, and 12·time·width per block and token for
attention (all pairs, though half of them are masked). What the backward pass computes anew is not counted.
"""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import benchmark
from lipzoo.certify.certificate import Certificate
from lipzoo.data import TextConfig
from lipzoo.data.text import TextName
from lipzoo.devices.mesh import make_mesh
from lipzoo.models import GPT, GPTConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.sample import generate
from lipzoo.system.terminal import program
from lipzoo.theory.geometry import DENSE
from lipzoo.theory.weight import weights
from lipzoo.train.plan import resolve
from lipzoo.train.state import init_state
from lipzoo.train.step import Computation, step_of
from recipes.shakespeare_gpt import RECIPE


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    accum_steps: int = RECIPE.training.accum_steps
    """Parts that the batch is computed in."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of forward and backward."""
    data: TextName = "shakespeare"
    """What the GPT reads."""
    batch_size: int = RECIPE.data.batch_size
    """Windows a step."""
    seq_len: int = RECIPE.data.unit[1]
    """Characters of a window."""
    rounds: int = 5
    """How often everything is timed."""
    product: int = 4096
    """Rows and columns of the large product."""
    sampled: int = 200
    """Characters to sample."""


def seconds(rounds: int, function: Callable[..., Any], *arguments: Any) -> float:
    """Median time of a call after a first one that compiles."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def model_flops(recipe: Recipe, gpt: GPT) -> float:
    """Floating-point operations of one forward and backward pass over a batch."""
    _, length = recipe.data.unit
    tokens = recipe.data.batch_size * length
    matrices = sum(w.array.size for w in weights(gpt) if w.geometry == DENSE)
    return tokens * (6 * matrices + 12 * length * gpt.config.width * gpt.config.depth)


def matmul_rate(rounds: int, size: int, dtype: str) -> float:
    """Operations a second in one large product."""
    a = jnp.ones((size, size), dtype)
    return 2 * size**3 / seconds(rounds, jax.jit(jnp.matmul), a, a)


def step_seconds(rounds: int, recipe: Recipe, batch: dict[str, Any]) -> float:
    """The whole compiled step, which is given a new state each time: it donates the old one."""
    mesh = make_mesh()
    state, train_step = init_state(recipe, mesh), step_of(recipe, mesh)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        state, _ = train_step(state, batch)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def sampling_rate(gpt: GPT, count: int) -> float:
    """Characters a second, after those that compile."""
    tokens = generate(gpt, np.zeros(129, np.int32))
    list(itertools.islice(tokens, 2))
    start = time.perf_counter()
    list(itertools.islice(tokens, count))
    return count / (time.perf_counter() - start)


def main() -> None:
    """Prints the table."""
    line = tyro.cli(CommandLine, prog=program(), description="The step of the Shakespeare GPT.")
    training = dataclasses.replace(RECIPE.training, accum_steps=line.accum_steps, model_dtype=line.model_dtype)
    text = TextConfig(data=line.data, batch_size=line.batch_size, seq_len=line.seq_len)
    recipe = dataclasses.replace(RECIPE, model=GPTConfig(), data=text, training=training)
    recipe.check()
    recipe, timed = recipe.complete(), functools.partial(seconds, line.rounds)
    data = recipe.data.load(0).batches(batch_size=recipe.data.batch_size, count=2 + line.rounds, seed=0)
    batch, pipeline = jax.device_put(next(data)), timed(lambda: next(data))
    mesh = make_mesh()
    model: Any = init_state(recipe, mesh).model
    plan, hyper = resolve(recipe)
    hyper = jax.device_put(hyper)  # Constraints take arrays, and a number that a program holds is none.
    computation, optimizer, one = Computation(plan, mesh), plan.transform(), jnp.float32(1)
    differentiate = jax.jit(lambda model, batch: computation.loss_and_gradient(model, batch, hyper)[1])
    known = {"hyper": hyper, "clock": jnp.int32(0), "lr": one, "fraction": one, "logits_fn": None}
    update = jax.jit(lambda gradient, state, model: optimizer.update(gradient, state, model, **known))
    grads, opt_state, key = differentiate(model, batch), optimizer.init(model), jax.random.key(0)
    parts = {
        "whole step": step_seconds(line.rounds, recipe, batch),
        "forward and backward": timed(differentiate, model, batch),
        "Muon": timed(update, grads, opt_state, model),
        "constraint": timed(jax.jit(lambda m, u: computation.constrain(m, u, jnp.int32(0), hyper, key)), model, grads),
    }
    floor = model_flops(recipe, model) / matmul_rate(line.rounds, line.product, line.model_dtype)
    shape = "×".join(map(str, batch["input"].shape))
    table = Table(
        f"batch {shape} in {line.accum_steps} parts",
        "ms",
        "share",
        title=f"{date.today()}, {jax.devices()[0].device_kind}",
    )
    for name, value in parts.items():
        table.add_row(name, f"{1e3 * value:.4g}", f"{value / parts['whole step']:.1%}")
    table.add_row("floor: model work at the rate of a large product", f"{1e3 * floor:.4g}", "")
    console = Console(width=110)
    console.print(table)
    console.print(f"whole step / floor: {parts['whole step'] / floor:.2f}; a batch of data: {1e3 * pipeline:.2f} ms")
    start = time.perf_counter()
    Certificate.of(model)
    console.print(f"certificate: {time.perf_counter() - start:.2f} s")
    console.print(f"sampling: {sampling_rate(model, line.sampled):,.0f} characters a second")


if __name__ == "__main__":
    benchmark(main)
