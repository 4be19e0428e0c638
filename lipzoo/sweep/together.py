"""Recipes of equal structure trained at once: many runs are one vmapped step, dealt out to devices."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lipzoo.data import Data
from lipzoo.devices.mesh import RUNS, make_mesh, place, replicated, runs_mesh
from lipzoo.models import AbstractModule
from lipzoo.recipe.recipe import Recipe
from lipzoo.train.plan import resolve
from lipzoo.train.state import State, init_state
from lipzoo.train.step import Batch, Metrics, TrainStep, make_train_step, make_train_steps
from lipzoo.train.steps import advance

CHECK_EVERY = 50
"""Steps between looks at the loss: when none of the runs has a finite one any more, all of them stop."""
Watch = Callable[[int], None]
"""Told after each step how many are done."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What training leaves of one run.

    **Attributes:**

    - `model`: its weights, bare. `curves`: each metric at each step that was done.
    - `seconds`: from the end of the first step, which compiles, to that of the last; of many runs at once, a share.
    - `first`: seconds until the first step was done, a share too.
    """

    model: AbstractModule
    curves: dict[str, np.ndarray]
    seconds: float
    first: float


def train_together(
    recipes: Sequence[Recipe],
    load: Callable[[Recipe], Data],
    watch: Watch = lambda step: None,
    last: int | None = None,
) -> list[Trained]:
    """What becomes of complete recipes of one plan, each as if it had been trained alone, but for rounding.

    Runs whose batches are the same ones, since data and seed are, read them once. Many runs are dealt out to all
    devices, and filled up with copies of the last where these do not divide them. All end after step `last`, if given.
    """
    begun, devices = time.perf_counter(), min(len(jax.devices()), len(recipes))
    filled = [*recipes, *[recipes[-1]] * (-len(recipes) % devices)]
    hooks = _Collector(filled, make_mesh() if len(filled) == 1 else runs_mesh(devices), watch)
    state, batches, hyper = hooks.start(load)
    steps = recipes[0].training.steps
    state = advance(state, batches, hyper, min(steps, last or steps), hooks)
    jax.block_until_ready(state)
    times = (time.perf_counter() - hooks.since) / len(recipes), (hooks.since - begun) / len(recipes)
    told = jax.device_get(hooks.told)
    curves = {name: np.array([values[name] for values in told], np.float64) for name in told[0]}
    if len(filled) == 1:
        return [Trained(state.model, curves, *times)]
    model = jax.device_get(state.model)

    def part(at: int) -> Trained:
        return Trained(jax.tree.map(lambda x: x[at], model), {k: v[:, at] for k, v in curves.items()}, *times)

    return [part(at) for at in range(len(recipes))]


def dealt(mesh: Mesh) -> NamedSharding:
    """Runs dealt out to the devices."""
    return NamedSharding(mesh, PartitionSpec(RUNS))


def stacked(trees: Sequence[Any]) -> Any:
    """Trees of equal structure as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def joined(states: Sequence[State], mesh: Mesh) -> State:
    """One state of many runs, on the devices: the clock, which all share, is one."""
    states = jax.device_get(states)
    clock = jax.device_put(states[0].step, replicated(mesh))
    return eqx.tree_at(lambda state: state.step, jax.device_put(stacked(states), dealt(mesh)), clock)


class _Collector:
    """Hooks that keep the metrics of all steps on the devices, and end runs that have all diverged."""

    def __init__(self, recipes: Sequence[Recipe], mesh: Mesh, watch: Watch):
        self.told: list[Metrics] = []
        self.since = math.nan
        """When the first step was done."""
        self._recipes, self._mesh, self._watch = recipes, mesh, watch
        self._many = RUNS in mesh.shape
        self._which: Any = None
        self._compiled: dict[int, TrainStep] = {}

    def start(self, load: Callable[[Recipe], Data]) -> tuple[State, Iterator[Batch], Any]:
        """The first state, the batches, and the numbers of all runs."""
        hypers = [resolve(recipe)[1] for recipe in self._recipes]
        distinct = list(dict.fromkeys((recipe.data, recipe.training.seed) for recipe in self._recipes))
        streams = [self._stream(load, pair) for pair in distinct]
        if not self._many:
            hyper = jax.device_put(hypers[0], replicated(self._mesh))
            return init_state(self._recipes[0], self._mesh), (place(batch, self._mesh) for batch in streams[0]), hyper
        which = [distinct.index((recipe.data, recipe.training.seed)) for recipe in self._recipes]
        self._which = jax.device_put(np.array(which, np.int32), replicated(self._mesh))
        state = joined([init_state(recipe, make_mesh()) for recipe in self._recipes], self._mesh)
        hyper = jax.device_put(stacked(hypers), dealt(self._mesh))
        batches = (jax.device_put(stacked(parts), replicated(self._mesh)) for parts in zip(*streams, strict=True))
        return state, batches, hyper

    def _stream(self, load: Callable[[Recipe], Data], pair: tuple[Any, int]) -> Iterator[Any]:
        first = next(r for r in self._recipes if (r.data, r.training.seed) == pair)
        steps, seed = first.training.steps, first.training.seed
        return load(first).batches(batch_size=first.data.batch_size, count=steps, seed=seed)

    def before(self, step: int, state: State) -> TrainStep:
        window = self._recipes[0].window_at(step)
        if window not in self._compiled:
            plan = resolve(self._recipes[0])[0]
            self._compiled[window] = (
                self._bound(make_train_steps(plan, self._mesh, window))
                if self._many
                else make_train_step(plan, self._mesh, window)
            )
        return self._compiled[window]

    def _bound(self, steps: Any) -> TrainStep:
        return lambda state, batches, hyper: steps(state, batches, self._which, hyper)

    def after(self, step: int, state: State, metrics: Metrics) -> tuple[State, bool]:
        self.told.append(metrics)
        if step == 1:
            jax.block_until_ready(state)
            self.since = time.perf_counter()
        self._watch(step)
        if step % CHECK_EVERY:
            return state, False
        return state, not bool(jnp.isfinite(metrics["loss"]).any())
