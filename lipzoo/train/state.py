"""What a training step changes, and what can be asked of it on the devices."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt32

from lipzoo.devices.mesh import stored
from lipzoo.models import AbstractModule
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.precision import enable
from lipzoo.theory.weight import bare, gram_norm, weights
from lipzoo.train.plan import Plan, resolve


class State(eqx.Module):
    """Everything that a step changes. All leaves are arrays, so it can be jitted, donated and stored as it is.

    The model is bare (`lipzoo.theory.weight.bare`): caps and shares come from a step's `Hyper`. `step`, the number of
    steps done, is the one clock: optimizers, trust region and schedules read it. `key` is the run's own randomness.
    Of many runs at once all but the clock have a leading axis. `average` is the mean of the weights so far
    (`lipzoo.train.average`), or None.
    """

    model: AbstractModule
    opt_state: Any
    step: Int[Array, ""]
    key: UInt32[Array, "*runs words"]
    average: Any = None


def init_state(recipe: Recipe, mesh: Mesh) -> State:
    """The state before the first step, on the mesh. Where the recipe computes in float64, jax does so from here on."""
    enable(recipe.training.model_dtype, recipe.constraint.project_dtype)
    model_key, step_key = jax.random.split(jax.random.key(recipe.training.seed))
    # Step by step: compiled as one, the factorizations of a GPT's first weights run at once, and on few cores XLA's CPU
    # backend then waits for ever.
    model: Any = bare(recipe.build_model(model_key))
    plan, _ = resolve(recipe)
    opt_state = plan.transform().init(model)
    average = jax.tree.map(jnp.copy, model) if plan.averages else None  # Of its own memory, since states are donated.
    state = State(model, opt_state, jnp.zeros((), jnp.int32), jax.random.key_data(step_key), average)
    return jax.device_put(state, stored(mesh, state))


def abstract_state(plan: Plan) -> Any:
    """The shapes of a state."""
    model = plan.abstract_model()
    opt_state = jax.eval_shape(plan.transform().init, model)
    rest = jax.eval_shape(lambda: (jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0))))
    return eqx.filter_eval_shape(State, model, opt_state, *rest, model if plan.averages else None)


@jax.jit
def all_finite(model: AbstractModule) -> Bool[Array, ""]:
    """Whether no weight holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.isfinite(weight.array).all() for weight in weights(model)]))


@jax.jit
def layer_norms(model: AbstractModule) -> dict[str, Float[Array, ""]]:
    """Upper bounds of every weight's norm, on the device."""
    return {weight.name: gram_norm(weight).max() for weight in weights(model)}
