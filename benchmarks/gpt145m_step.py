"""One way to run a step of the 145M GPT: what it is, how it compiles, how long it takes."""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.shakespeare_step import model_flops, seconds
from lipzoo.devices.mesh import make_mesh, place, spread, stored
from lipzoo.recipe.recipe import Recipe
from lipzoo.train.plan import resolve
from lipzoo.train.state import State, abstract_state, init_state
from lipzoo.train.step import Computation, make_train_step

DOCUMENT = 700
"""Tokens of a document, on average, where documents are masked from one another; web pages are about that long."""
MEANINGLESS = {"remat": "none", "window": 0, "window_stages": 1, "separator": -1}
"""Settings of the model that its first weights do not depend on."""


@dataclasses.dataclass(frozen=True)
class Way:
    """How a step is computed, as far as it is searched."""

    rows: int
    """Windows that a device works on at once."""
    parts: int
    """Parts of a batch, one after the other; 0 for as many as the recipe's batch needs."""
    remat: str
    msign_dtype: str
    granularity: str
    length: int
    """Tokens of a window."""
    window: int
    """Tokens that attention looks back; 0 for all."""
    documents: bool
    """Whether documents are masked from one another."""

    def larger(self, other: "Way") -> bool:
        """Whether it needs more memory than another, from which it differs in nothing else."""
        return self.rows >= other.rows and dataclasses.replace(self, rows=other.rows) == other

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe run so."""
        at_once = self.rows * recipe.training.devices
        parts = self.parts or max(recipe.data.batch_size // at_once, 1)
        changes: dict[str, Any] = {"window": self.window, "window_stages": 1, "granularity": self.granularity}
        if not self.documents:
            changes["separator"] = -1
        return dataclasses.replace(
            recipe,
            model=dataclasses.replace(recipe.model, remat=self.remat, **changes),
            data=dataclasses.replace(recipe.data, batch_size=at_once * parts, seq_len=self.length),
            optimizer=dataclasses.replace(recipe.optimizer, msign_dtype=self.msign_dtype),
            training=dataclasses.replace(recipe.training, accum_steps=parts),
        )


class Compiled(NamedTuple):
    """A step that is ready to run."""

    step: Any
    recipe: Recipe
    mesh: Mesh
    seconds: float
    """Of compilation."""

    @property
    def gigabytes(self) -> float:
        """What a step holds at once: the state, a batch, and what it computes between."""
        memory = self.step.memory_analysis()
        size = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        return (size + memory.output_size_in_bytes - memory.alias_size_in_bytes) / 1e9


def compiled(recipe: Recipe) -> Compiled:
    """The whole step of this recipe, lowered and compiled once, ahead of time."""
    recipe.check()
    start, mesh, (plan, hyper) = time.perf_counter(), make_mesh(recipe.training.mesh), resolve(recipe)
    jitted: Any = make_train_step(plan, mesh)
    step = jitted.lower(abstract_state(plan), random_batch(recipe), hyper).compile()
    return Compiled(step, recipe, mesh, time.perf_counter() - start)


@functools.cache
def _first_state(recipe: Recipe) -> State:
    return jax.device_get(init_state(recipe, make_mesh(recipe.training.mesh)))


def fresh_state(recipe: Recipe, mesh: Mesh) -> State:
    """A first state. Its weights are computed once for all recipes that have the same, and wait outside the device."""
    model: Any = recipe.model
    state = _first_state(dataclasses.replace(recipe, model=dataclasses.replace(model, **MEANINGLESS)))
    like = abstract_state(resolve(recipe)[0])
    state = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(state))
    return jax.device_put(state, stored(mesh, state))


def random_batch(recipe: Recipe) -> dict[str, np.ndarray]:
    """Tokens at random: time does not depend on what they say, but for where documents begin."""
    draw, shape = np.random.default_rng(0), (recipe.data.batch_size, recipe.data.unit[1])
    tokens = np.where(draw.random(shape) < 1 / DOCUMENT, 50256, draw.integers(0, 50256, shape)).astype(np.int32)
    return {"input": tokens, "label": np.roll(tokens, -1, axis=1)}


def step_seconds(made: Compiled, rounds: int) -> float:
    """The mean time of a step after a first one; the device is waited for once, at the end."""
    state, batch = fresh_state(made.recipe, made.mesh), place(random_batch(made.recipe), made.mesh)
    hyper = resolve(made.recipe)[1]
    state, _ = jax.block_until_ready(made.step(state, batch, hyper))
    start = time.perf_counter()
    for _ in range(rounds):
        state, _ = made.step(state, batch, hyper)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / rounds


def flops(recipe: Recipe) -> float:
    """The model's work in a step."""
    return model_flops(recipe, resolve(recipe)[0].abstract_model())


def parameters(recipe: Recipe) -> int:
    """Numbers that are trained."""
    return sum(x.size for x in jax.tree.leaves(resolve(recipe)[0].abstract_model()))


def product_rate(rounds: int, size: int, dtype: str) -> float:
    """Operations a second in one large product of random numbers: equal ones save power, and make devices faster."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    return 2 * size**3 / seconds(rounds, jax.jit(jnp.matmul), a, a)


def part_seconds(recipe: Recipe, rounds: int) -> dict[str, float]:
    """The parts of a step, each compiled by itself."""
    mesh, timed, (plan, hyper) = make_mesh(recipe.training.mesh), functools.partial(seconds, rounds), resolve(recipe)
    state, batch = fresh_state(recipe, mesh), place(random_batch(recipe), mesh)
    computation, one, key = Computation(plan, mesh), jnp.float32(1), jax.random.key(0)
    optimizer = plan.transform(functools.partial(spread, mesh))
    known = {"clock": jnp.int32(0), "lr": one, "fraction": one, "logits_fn": None}
    # What a step takes as arguments is one here too: compilers compute with constants beforehand.
    update = jax.jit(lambda grads, state, model, hyper: optimizer.update(grads, state, model, hyper=hyper, **known))
    constrain = jax.jit(lambda model, updates, hyper: computation.constrain(model, updates, jnp.int32(0), hyper, key))
    differentiate = jax.jit(lambda model, batch, hyper: computation.loss_and_gradient(model, batch, hyper)[1])
    return {
        "optimizer": timed(update, state.model, state.opt_state, state.model, hyper),
        "constraint": timed(constrain, state.model, state.model, hyper),
        "forward and backward": timed(differentiate, state.model, batch, hyper),
    }


def trace(made: Compiled, steps: int, folder: str) -> None:
    """Writes a profiler's trace of so many steps, for TensorBoard or Perfetto."""
    state, batch = fresh_state(made.recipe, made.mesh), place(random_batch(made.recipe), made.mesh)
    hyper = resolve(made.recipe)[1]
    state, _ = jax.block_until_ready(made.step(state, batch, hyper))
    with jax.profiler.trace(folder):
        for _ in range(steps):
            state, _ = made.step(state, batch, hyper)
        jax.block_until_ready(state)
