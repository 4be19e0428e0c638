"""The training step: loss and gradient → optimizer update → apply → project, in one compiled function."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt32

from lipzoo import norms
from lipzoo.constraints import Step
from lipzoo.data import Images, Split, Text
from lipzoo.models import AbstractModule
from lipzoo.models.layers import project
from lipzoo.optim.ebc import LogitsFn, telemetry
from lipzoo.recipe import Recipe
from lipzoo.sharding import batched, replicated
from lipzoo.weight import Weight, exact_norm, gram_norm, map_weights, weights

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[["State", dict[str, Array]], tuple["State", Metrics]]
FreeStep = Callable[["State", dict[str, Array], float | Float[Array, ""]], tuple["State", Metrics]]
Evaluate = Callable[[AbstractModule], dict[str, float]]


EVALUATED_TOGETHER = {1: 1024, 2: 64}
"""Examples in a batch of the evaluation, by the dimensions of their labels: images, windows of tokens."""


class State(eqx.Module):
    """Everything that a step changes. All leaves are arrays, so it can be jitted, donated and stored as it is."""

    model: AbstractModule
    opt_state: Any
    step: Int[Array, ""]
    key: UInt32[Array, " words"]


def init_state(recipe: Recipe, mesh: Mesh) -> State:
    """The state before the first step, replicated over the mesh."""

    model_key, step_key = jax.random.split(jax.random.key(recipe.training.seed))
    # Step by step: compiled as one, the factorizations of a GPT's first weights run at once, and on few cores XLA's CPU
    # backend then waits for ever.
    model: Any = jax.device_put(recipe.build_model(model_key), replicated(mesh))
    opt_state = recipe.optimizer.build(recipe.ebc.build()).init(model)
    state = State(model, opt_state, jnp.zeros((), jnp.int32), jax.random.key_data(step_key))
    return jax.device_put(state, replicated(mesh))


def make_train_step(recipe: Recipe, mesh: Mesh, white: int | None) -> TrainStep:
    """The compiled step (state, batch) → (state, metrics). The state passed in is donated: do not use it again."""
    step = make_free_step(recipe, mesh, white)

    def train_step(state: State, batch: dict[str, Array]) -> tuple[State, Metrics]:
        return step(state, batch, recipe.optimizer.lr)

    shardings = (replicated(mesh), batched(mesh))
    return jax.jit(train_step, donate_argnums=0, in_shardings=shardings, out_shardings=replicated(mesh))


def make_free_step(recipe: Recipe, mesh: Mesh, white: int | None) -> FreeStep:
    """The step before it is compiled, with the peak learning rate as an argument."""
    optimizer = recipe.optimizer.build(recipe.ebc.build())
    factor = recipe.optimizer.factor(recipe.training.steps)

    def train_step(state: State, batch: dict[str, Array], peak: float | Float[Array, ""]) -> tuple[State, Metrics]:
        params: Any = state.model
        (loss, accuracy), gradient = loss_and_gradient(recipe, white, params, batch)
        fraction = factor(state.step)
        lr = peak * fraction
        probe = probe_logits(recipe, mesh, white, batch)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, params, lr=lr, fraction=fraction, logits_fn=probe
        )
        updates = jax.tree.map(lambda update: -lr * update, updates)
        model = optax.apply_updates(params, updates)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        model = constrain(recipe, model, updates, lr, key)
        metrics = {"loss": loss, "accuracy": accuracy, "lr": lr, **telemetry(opt_state)}
        return State(model, opt_state, state.step + 1, state.key), metrics

    return train_step


def probe_logits(recipe: Recipe, mesh: Mesh, white: int | None, batch: dict[str, Array]) -> LogitsFn:
    """The map from a model to temperature × logits of EBC's probe: the first tokens of the batch, on every device."""
    examples, *time = batch["label"].shape
    rows, length = recipe.ebc.probe_shape(examples, *time, *[1] * (1 - len(time)))
    x = batch["input"][:rows, :length] if time else batch["input"][:rows]
    x = jax.lax.with_sharding_constraint(x, replicated(mesh))

    def logits(model: AbstractModule) -> Float[Array, "tokens classes"]:
        values = forward(model, x, white, recipe.training.model_dtype)
        return recipe.training.temperature * values.reshape(-1, values.shape[-1])

    return logits


def constrain(recipe: Recipe, model: Any, updates: Any, lr: Float[Array, ""], key: Key[Array, ""]) -> Any:
    """The updated model with every weight's constraint applied."""
    sup, rate = recipe.optimizer.update_sup, recipe.optimizer.weight_decay
    indices = {weight.name: index for index, weight in enumerate(weights(model))}

    def apply(weight: Weight, update: Weight) -> Weight:
        share_lr = lr * weight.share
        if np.isfinite(sup):
            step = Step(share_lr * sup, share_lr * rate)
        else:  # The update includes the decay, so it counts as part of the update's norm.
            step = Step(norms.gram_norm(update.array) * update.rms_factor)
        step = eqx.tree_at(lambda s: s.key, step, jax.random.fold_in(key, indices[weight.name]), is_leaf=_is_none)
        return project(weight, recipe.constraint.of(weight), step)

    return map_weights(apply, model, updates)


def _is_none(node: Any) -> bool:
    return node is None


def loss_and_gradient(
    recipe: Recipe, white: int | None, model: AbstractModule, batch: dict[str, Array]
) -> tuple[tuple[Array, Array], Any]:
    """Mean loss, accuracy and gradient over the batch, computed in `accum_steps` parts."""
    parts = recipe.training.accum_steps
    differentiate = jax.value_and_grad(functools.partial(_loss, recipe, white), has_aux=True)
    if parts == 1:
        return differentiate(model, batch)

    def split(x: Array) -> Array:  # Every part takes rows from every device.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(model, part)), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(differentiate, model, batch))
    total, _ = jax.lax.scan(add, zero, jax.tree.map(split, batch))
    return jax.tree.map(lambda x: x / parts, total)


def _loss(
    recipe: Recipe, white: int | None, model: AbstractModule, batch: dict[str, Array]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of temperature × logits, and accuracy."""
    logits = forward(model, batch["input"], white, recipe.training.model_dtype)
    labels = batch["label"]
    # For a few classes one-hot products are one fused loop forward and one backward; a gather is a dozen of them.
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    losses = optax.softmax_cross_entropy(recipe.training.temperature * logits, one_hot)
    return losses.mean(), (logits.argmax(-1) == labels).mean(dtype=jnp.float32)


def forward(model: AbstractModule, x: Array, white: int | None, dtype: str) -> Float[Array, "batch *time classes"]:
    """Float32 logits of a batch, computed in `dtype`: of images scaled to [0, 1] by `white`, or of tokens."""
    model = jax.tree.map(lambda x: x.astype(dtype), model)
    return jax.vmap(model)(x if white is None else x.astype(dtype) / white).astype(jnp.float32)


def make_evaluate(recipe: Recipe, mesh: Mesh, data: Images | Text) -> Evaluate:
    """A function from a model to its loss and accuracy over every test split, in batches on the mesh.

    They are called val_loss and val_accuracy for the whole test split.
    """
    splits = {name: _on_device(split, mesh) for name, split in data.tests.items()}

    @jax.jit
    def sums(model: AbstractModule, batch: dict[str, Array]) -> tuple[Array, Array]:
        logits = forward(model, batch["input"], data.white, recipe.training.model_dtype)
        scaled = recipe.training.temperature * logits
        losses = optax.softmax_cross_entropy_with_integer_labels(scaled, batch["label"])
        correct = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        return (losses * batch["weight"]).sum(), (correct * batch["weight"]).sum()

    def evaluate(model: AbstractModule) -> dict[str, float]:
        values = {}
        for name, (batches, total) in splits.items():
            loss, correct = np.sum(jax.device_get([sums(model, batch) for batch in batches]), axis=0)
            values |= {f"{name}_loss": float(loss / total), f"{name}_accuracy": float(correct / total)}
        return values

    return evaluate


def _on_device(split: Split, mesh: Mesh) -> tuple[list[dict[str, Array]], float]:
    """A split in batches, and the number of its labels."""
    size = mesh.size * -(-EVALUATED_TOGETHER[split.label.ndim] // mesh.size)
    padded = [_pad(split, start, size) for start in range(0, len(split.label), size)]
    total = sum(float(batch["weight"].sum()) for batch in padded)
    return [jax.device_put(batch, batched(mesh)) for batch in padded], total


def _pad(split: Split, start: int, size: int) -> dict[str, np.ndarray]:
    """The examples from `start` on, repeated up to `size` with weight 0 beyond the end."""
    chosen = np.arange(start, start + size)
    inside = (chosen < len(split.label)).astype(np.float32)
    chosen = chosen % len(split.label)
    label = split.label[chosen]
    weight = inside.reshape(-1, *(1,) * (label.ndim - 1)) * np.ones(label.shape, np.float32)
    weight = weight if split.weight is None else weight * split.weight[chosen]
    return {"input": split.input[chosen], "label": label, "weight": weight}


@jax.jit
def layer_norms(model: AbstractModule) -> dict[str, Float[Array, ""]]:
    """Upper bounds of every weight's norm, on the device."""
    return {weight.name: gram_norm(weight).max() for weight in weights(model)}


def seal(model: AbstractModule) -> AbstractModule:
    """`model` with every weight that exceeds its cap cut back to it exactly, by SVD in float64 on the host."""

    def cut(weight: Weight) -> Weight:
        if np.max(exact_norm(weight)) <= weight.cap:
            return weight
        matrix = np.asarray(weight.array).astype(np.float64)
        u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
        limit, shrink = weight.cap / weight.rms_factor, 1e-7
        while True:  # Rounding back to the stored precision may lift the norm by some ulps.
            limit, shrink = limit * (1 - shrink), 2 * shrink
            cut = ((u * np.minimum(sigma, limit)[..., None, :]) @ vt).astype(weight.array.dtype)
            sealed = weight.with_array(jax.device_put(cut, weight.array.sharding))
            if np.max(exact_norm(sealed)) <= weight.cap:
                return sealed

    return map_weights(cut, model)
