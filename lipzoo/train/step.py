"""The training step: loss and gradient → optimizer update → apply → project, in one compiled function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from lipzoo.constraints import Step
from lipzoo.constraints.base import lowered
from lipzoo.devices.mesh import RUNS, batched, gathered, replicated, spread, stored
from lipzoo.layers.base import Mask
from lipzoo.layers.stack import Stack
from lipzoo.models import AbstractModule
from lipzoo.optim.ebc.divergence import kl
from lipzoo.optim.ebc.state import LogitsFn, telemetry
from lipzoo.optim.hyper import Hyper, Number
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory import products
from lipzoo.theory.precision import computing, rounded
from lipzoo.theory.weight import Weight, map_weights, weights
from lipzoo.train.average import blend
from lipzoo.train.plan import Plan, resolve
from lipzoo.train.state import State, abstract_state

Metrics = dict[str, Float[Array, "*runs"]]
Batch = dict[str, Array]
TrainStep = Callable[[State, Batch, Hyper], tuple[State, Metrics]]
TrainSteps = Callable[[State, Batch, Array, Hyper], tuple[State, Metrics]]
FULL = Mask()


KEPT = 16
"""Compiled steps that are kept for plans that come again; each takes memory."""


@functools.lru_cache(KEPT)
def make_train_step(plan: Plan, mesh: Mesh, window: int = 0) -> TrainStep:
    """The compiled step (state, batch, hyper) → (state, metrics), the same for equal plans.

    The state passed in is donated: do not use it again. `window`, unless 0, is how many tokens attention looks back.
    """
    state = stored(mesh, abstract_state(plan))
    shardings = {"in_shardings": (state, batched(mesh), replicated(mesh)), "out_shardings": (state, replicated(mesh))}
    return jax.jit(Computation(plan, mesh, Mask(window)).step, donate_argnums=0, **shardings)


@functools.lru_cache(KEPT)
def make_train_steps(plan: Plan, mesh: Mesh, window: int = 0) -> TrainSteps:
    """The step of many runs at once, (states, batches, which, hypers) → (states, metrics): states, numbers and metrics
    have a leading axis, dealt out to the devices of a `runs_mesh`; run i reads batch `which[i]`.

    One clock is for all, so what happens every so many steps is a branch as in a single run.
    """
    computation = Computation(plan, mesh, Mask(window))

    def one(clock: Array, rest: tuple[Any, ...], batches: Batch, which: Array, hyper: Hyper) -> tuple[Any, ...]:
        model, opt_state, key, average = rest
        batch = jax.tree.map(lambda x: x[which], batches)
        state, metrics = computation.step(State(model, opt_state, clock, key, average), batch, hyper)
        return state.step, (state.model, state.opt_state, key, state.average), metrics

    runs = jax.vmap(one, in_axes=(None, 0, None, 0, 0), out_axes=(None, 0, 0), spmd_axis_name=RUNS)
    dealt, whole = NamedSharding(mesh, PartitionSpec(RUNS)), replicated(mesh)
    states = eqx.tree_at(lambda state: state.step, jax.tree.map(lambda _: dealt, abstract_state(plan)), whole)

    def step(state: State, batches: Batch, which: Array, hyper: Hyper) -> tuple[State, Metrics]:
        rest = (state.model, state.opt_state, state.key, state.average)
        clock, (model, opt_state, key, average), metrics = runs(state.step, rest, batches, which, hyper)
        return State(model, opt_state, clock, key, average), metrics

    shardings = {"in_shardings": (states, whole, whole, dealt), "out_shardings": (states, dealt)}
    return jax.jit(step, donate_argnums=0, **shardings)


def step_of(recipe: Recipe, mesh: Mesh) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The compiled step of one complete recipe, with its numbers."""
    plan, hyper = resolve(recipe)
    step, hyper = make_train_step(plan, mesh), jax.device_put(hyper, replicated(mesh))
    return lambda state, batch: step(state, batch, hyper)


@dataclasses.dataclass(frozen=True)
class Computation:
    """The parts of a step, for one plan on one mesh."""

    plan: Plan
    mesh: Mesh
    mask: Mask = FULL

    def step(self, state: State, batch: Batch, hyper: Hyper) -> tuple[State, Metrics]:
        """The state after a step, and what is told of it."""
        params: Any = state.model
        (loss, accuracy), gradient = self.loss_and_gradient(params, batch, hyper)
        fraction = self.plan.factor(state.step)
        lr = hyper.lr * fraction
        known = {"hyper": hyper, "clock": state.step, "lr": lr, "fraction": fraction}
        updates, opt_state = self.plan.transform(functools.partial(spread, self.mesh)).update(
            gradient, state.opt_state, params, **known, logits_fn=self.probe_logits(batch, hyper.temperature)
        )
        updates = jax.tree.map(lambda update: -lr * update, updates)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        model = self.constrain(optax.apply_updates(params, updates), updates, state.step, hyper, key)
        metrics = {"loss": loss, "accuracy": accuracy, "lr": lr, **telemetry(opt_state)}
        if self.plan.measures:
            metrics |= self.change(params, model, batch, hyper.temperature)
        average = blend(state.average, model, hyper.ema, state.step) if self.plan.averages else None
        return State(model, opt_state, state.step + 1, state.key, average), metrics

    def probe_logits(self, batch: Batch, temperature: Number) -> LogitsFn:
        """The map from a model to temperature × logits of the probe: a batch's first tokens, on every device."""
        examples, *time = batch["label"].shape
        rows, length = self.plan.ebc.probe_shape(examples, *time, *[1] * (1 - len(time)))
        x = batch["input"][:rows, :length] if time else batch["input"][:rows]
        x = jax.lax.with_sharding_constraint(x, replicated(self.mesh))

        def logits(model: AbstractModule) -> Float[Array, "tokens classes"]:
            values = self.logits(self.compute_copy(model), x).astype(jnp.float32)
            return temperature * values.reshape(-1, values.shape[-1])

        return logits

    def change(self, before: Any, after: Any, batch: Batch, temperature: Number) -> Metrics:
        """How far a step moved any logit of its batch, and any prediction: KL in nats, of temperature × logits."""
        pair = self.compute_copy(before), self.compute_copy(after)

        def part(x: Array) -> tuple[Array, Array]:
            old, new = (self.logits(model, x).astype(jnp.float32) for model in pair)
            return jnp.abs(new - old).max(), kl(temperature * old, temperature * new).max()

        logit, nats = jax.lax.map(part, self._split(batch["input"])) if self.plan.parts > 1 else part(batch["input"])
        return {"largest_logit_change": logit.max(), "largest_kl": nats.max()}

    def constrain(self, model: Any, updates: Any, clock: Int[Array, ""], hyper: Hyper, key: Key[Array, ""]) -> Any:
        """The updated model with every weight's constraint applied, if it is the step for it."""
        indices = {weight.name: index for index, weight in enumerate(weights(model))}
        held = dict(self.plan.held)

        def apply(weight: Weight, update: Weight) -> Weight:
            if weight.name not in held:
                return weight
            constraint, sup, every = held[weight.name]
            cap, peak = hyper.caps[weight.name], hyper.lr * hyper.shares[weight.name]
            own_key = jax.random.fold_in(key, indices[weight.name])

            def known(array: Array) -> Array:
                own_lr, moved = peak * self.plan.factor(clock), peak * sup * self.ahead(clock, every)
                goal = lowered(cap, moved, every, array.shape)
                step = Step(own_lr * sup + (cap - goal) * (1 + 1e-6), own_lr * hyper.decay, own_key)
                return constraint.hold(weight.with_array(array), goal, step).array

            def due(array: Array) -> Array:
                return known(array) if every == 1 else jax.lax.cond(clock % every == 0, known, lambda x: x, array)

            def measured(array: Array, change: Array) -> Array:
                # The update includes the decay, so it counts as part of the update's norm.
                step = Step(weight.geometry.gram_norm(change), key=own_key)
                return constraint.hold(weight.with_array(array), cap, step).array

            if np.isfinite(sup):
                return weight.with_array(spread(self.mesh, due)(weight.array))
            return weight.with_array(spread(self.mesh, measured)(weight.array, update.array))

        return map_weights(apply, model, updates)

    def ahead(self, clock: Int[Array, ""], every: int) -> Float[Array, ""]:
        """The sum of the schedule's factors of the steps until a constraint acts again."""
        return sum((self.plan.factor(clock + later) for later in range(1, every)), jnp.float32(0))

    def compute_copy(self, model: Any) -> Any:
        """The weights as forward and backward see them: in the model's precision and whole on every device.

        Only stacks stay split along `fsdp`; a block is gathered when it is its turn (`Stack.masked`).
        """

        def gather(node: Any) -> Any:
            shardings = gathered(self.mesh, node) if isinstance(node, Stack) else replicated(self.mesh)
            return jax.lax.with_sharding_constraint(node, shardings)

        low = jax.tree.map(lambda x: rounded(x, self.plan.model_dtype), model)
        return jax.tree.map(gather, low, is_leaf=lambda node: isinstance(node, Stack))

    def loss_and_gradient(self, model: Any, batch: Batch, hyper: Hyper) -> tuple[tuple[Array, Array], Any]:
        """Mean loss, accuracy and float32 gradient over the batch, computed in parts."""
        parts = self.plan.parts
        low = self.compute_copy(model)

        def differentiate(part: Batch) -> tuple[tuple[Array, Array], Any]:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                values, gradient = jax.value_and_grad(self._loss, has_aux=True)(low, part, hyper)
            gradient = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
            return values, jax.lax.with_sharding_constraint(gradient, stored(self.mesh, gradient))

        if parts == 1:
            return differentiate(batch)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, differentiate(part)), None

        split_batch = jax.tree.map(self._split, batch)
        shapes = jax.eval_shape(differentiate, jax.tree.map(lambda x: x[0], split_batch))
        total, _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), split_batch)
        return jax.tree.map(lambda x: x / parts, total)

    def _split(self, x: Array) -> Array:
        """A batch in its parts, each of which takes rows from every device."""
        return x.reshape(-1, self.plan.parts, *x.shape[1:]).swapaxes(0, 1)

    def _loss(self, model: AbstractModule, batch: Batch, hyper: Hyper) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The mean loss, and accuracy."""
        logits, labels = self.logits(model, batch["input"]), batch["label"]
        losses = self.plan.loss(model, logits, labels, hyper)
        return losses.mean().astype(jnp.float32), correct(logits, labels).mean()

    def logits(self, model: AbstractModule, x: Array) -> Float[Array, "batch *time classes"]:
        """`forward` on the mesh, of a model that is a compute copy."""
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return forward(model, x, self.plan.white, self.plan.model_dtype, self.mask)


def correct(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """1 where the largest logit is the label's, else 0."""
    return (logits.argmax(-1).astype(labels.dtype) == labels).astype(jnp.float32)


def forward(
    model: AbstractModule, x: Array, white: int | None, dtype: str, mask: Mask = FULL
) -> Float[Array, "batch *time classes"]:
    """Logits of a batch, computed in `dtype`: of images scaled to [0, 1] by `white`, or of tokens.

    They come in float32, or float64 where that is `dtype`. Weights that are to be rounded to float8 are so already (see
    `Computation.compute_copy`).
    """
    low = computing(dtype)
    model = jax.tree.map(lambda x: x.astype(low), model)
    x = x if white is None else x.astype(low) / white
    return jax.vmap(lambda x: model.masked(x, mask))(x).astype(products.at_least_float32(low))
