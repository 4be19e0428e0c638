"""The training step: loss and gradient → optimizer update → apply → project, in one compiled function."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from lipzoo.constraints import Step, Unconstrained, WeightDecay
from lipzoo.devices.mesh import batched, gathered, replicated, spread, stored
from lipzoo.layers.base import Mask
from lipzoo.layers.stack import Stack
from lipzoo.models import AbstractModule
from lipzoo.optim.ebc.clip import trust_region
from lipzoo.optim.ebc.state import LogitsFn, telemetry
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory import norms
from lipzoo.theory.precision import computing, rounded
from lipzoo.theory.weight import Weight, map_weights, weights
from lipzoo.train.state import State, abstract_state

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[["State", dict[str, Array]], tuple["State", Metrics]]
FreeStep = Callable[["State", dict[str, Array], float | Float[Array, ""]], tuple["State", Metrics]]
FULL = Mask()


def make_train_step(recipe: Recipe, mesh: Mesh, white: int | None, window: int = 0) -> TrainStep:
    """The compiled step (state, batch) → (state, metrics). The state passed in is donated: do not use it again.

    `window`, unless 0, is how many tokens attention looks back.
    """
    step = make_free_step(recipe, mesh, white, window)

    def train_step(state: State, batch: dict[str, Array]) -> tuple[State, Metrics]:
        return step(state, batch, recipe.optimizer.lr)

    state = stored(mesh, abstract_state(recipe))
    in_shardings, out_shardings = (state, batched(mesh)), (state, replicated(mesh))
    return jax.jit(train_step, donate_argnums=0, in_shardings=in_shardings, out_shardings=out_shardings)


def make_free_step(recipe: Recipe, mesh: Mesh, white: int | None, window: int = 0) -> FreeStep:
    """The step before it is compiled, with the peak learning rate as an argument."""
    optimizer = recipe.optimizer.build(trust_region(recipe.ebc), functools.partial(spread, mesh))
    factor = recipe.optimizer.factor(recipe.training.steps)

    def train_step(state: State, batch: dict[str, Array], peak: float | Float[Array, ""]) -> tuple[State, Metrics]:
        params: Any = state.model
        mask = Mask(window)
        (loss, accuracy), gradient = loss_and_gradient(recipe, mesh, white, params, batch, mask)
        fraction = factor(state.step)
        lr = peak * fraction
        probe = probe_logits(recipe, mesh, white, batch, mask)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, params, lr=lr, fraction=fraction, logits_fn=probe
        )
        updates = jax.tree.map(lambda update: -lr * update, updates)
        model = optax.apply_updates(params, updates)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        model = constrain(recipe, mesh, model, updates, lr, key)
        metrics = {"loss": loss, "accuracy": accuracy, "lr": lr, **telemetry(opt_state)}
        return State(model, opt_state, state.step + 1, state.key), metrics

    return train_step


def probe_logits(recipe: Recipe, mesh: Mesh, white: int | None, batch: dict[str, Array], mask: Mask = FULL) -> LogitsFn:
    """The map from a model to temperature × logits of EBC's probe: the first tokens of the batch, on every device."""
    examples, *time = batch["label"].shape
    rows, length = recipe.ebc.probe_shape(examples, *time, *[1] * (1 - len(time)))
    x = batch["input"][:rows, :length] if time else batch["input"][:rows]
    x = jax.lax.with_sharding_constraint(x, replicated(mesh))

    def logits(model: AbstractModule) -> Float[Array, "tokens classes"]:
        dtype = recipe.training.model_dtype
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            values = forward(compute_copy(recipe, mesh, model), x, white, dtype, mask).astype(jnp.float32)
        return recipe.training.temperature * values.reshape(-1, values.shape[-1])

    return logits


def constrain(recipe: Recipe, mesh: Mesh, model: Any, updates: Any, lr: Float[Array, ""], key: Key[Array, ""]) -> Any:
    """The updated model with every weight's constraint applied."""
    indices = {weight.name: index for index, weight in enumerate(weights(model))}

    def apply(weight: Weight, update: Weight) -> Weight:
        constraint, sup = recipe.constraint.of(weight), recipe.optimizer.update_sup(weight)
        if isinstance(constraint, Unconstrained) or (isinstance(constraint, WeightDecay) and np.isinf(weight.cap)):
            return weight
        own_key, own_lr = jax.random.fold_in(key, indices[weight.name]), lr * weight.share

        def known(array: Array) -> Array:
            step = Step(own_lr * sup, own_lr * recipe.optimizer.weight_decay, own_key)
            return constraint.apply(weight.with_array(array), step).array

        def measured(array: Array, change: Array) -> Array:
            # The update includes the decay, so it counts as part of the update's norm.
            step = Step(norms.gram_norm(change) * weight.rms_factor, key=own_key)
            return constraint.apply(weight.with_array(array), step).array

        if np.isfinite(sup):
            return weight.with_array(spread(mesh, known)(weight.array))
        return weight.with_array(spread(mesh, measured)(weight.array, update.array))

    return map_weights(apply, model, updates)


def compute_copy(recipe: Recipe, mesh: Mesh, model: Any) -> Any:
    """The weights as forward and backward see them: in the model's precision and whole on every device.

    Only stacks stay split along `fsdp`; a block is gathered when it is its turn (`Stack.masked`).
    """

    def gather(node: Any) -> Any:
        shardings = gathered(mesh, node) if isinstance(node, Stack) else replicated(mesh)
        return jax.lax.with_sharding_constraint(node, shardings)

    low = jax.tree.map(lambda x: rounded(x, recipe.training.model_dtype), model)
    return jax.tree.map(gather, low, is_leaf=lambda node: isinstance(node, Stack))


def loss_and_gradient(
    recipe: Recipe, mesh: Mesh, white: int | None, model: Any, batch: dict[str, Array], mask: Mask = FULL
) -> tuple[tuple[Array, Array], Any]:
    """Mean loss, accuracy and float32 gradient over the batch, computed in parts."""
    parts = recipe.training.parts(recipe.data.batch_size, recipe.data.unit[1])
    low = compute_copy(recipe, mesh, model)

    def differentiate(part: dict[str, Array]) -> tuple[tuple[Array, Array], Any]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            values, gradient = jax.value_and_grad(_loss, has_aux=True)(low, recipe, white, mask, part)
        gradient = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
        return values, jax.lax.with_sharding_constraint(gradient, stored(mesh, gradient))

    if parts == 1:
        return differentiate(batch)

    def split(x: Array) -> Array:  # Every part takes rows from every device.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(part)), None

    split_batch = jax.tree.map(split, batch)
    shapes = jax.eval_shape(differentiate, jax.tree.map(lambda x: x[0], split_batch))
    total, _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), split_batch)
    return jax.tree.map(lambda x: x / parts, total)


def _loss(
    model: AbstractModule, recipe: Recipe, white: int | None, mask: Mask, batch: dict[str, Array]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of temperature × logits, and accuracy."""
    logits = forward(model, batch["input"], white, recipe.training.model_dtype, mask)
    labels = batch["label"]
    # For a few classes one-hot products are one fused loop forward and one backward; a gather is a dozen of them.
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    losses = optax.softmax_cross_entropy(recipe.training.temperature * logits, one_hot)
    return losses.mean().astype(jnp.float32), correct(logits, labels).mean()


def correct(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """1 where the largest logit is the label's, else 0."""
    return (logits.argmax(-1).astype(labels.dtype) == labels).astype(jnp.float32)


def forward(
    model: AbstractModule, x: Array, white: int | None, dtype: str, mask: Mask = FULL
) -> Float[Array, "batch *time classes"]:
    """Logits of a batch, computed in `dtype`: of images scaled to [0, 1] by `white`, or of tokens.

    They come in float32, or float64 where that is `dtype`. Weights that are to be rounded to float8 are so already (see
    `compute_copy`).
    """
    low = computing(dtype)
    model = jax.tree.map(lambda x: x.astype(low), model)
    x = x if white is None else x.astype(low) / white
    return jax.vmap(lambda x: model.masked(x, mask))(x).astype(norms.at_least_float32(low))
