"""The training step: loss and gradient → optimizer update → apply → project, in one compiled function."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from lipzoo.theory import norms
from lipzoo.constraints import Step, Unconstrained, WeightDecay
from lipzoo.data import Images, Split, Text, Tokens
from lipzoo.models import AbstractModule
from lipzoo.models.gpt import Stack
from lipzoo.layers.layers import Mask, project
from lipzoo.optim.ebc.clip import LogitsFn, telemetry
from lipzoo.theory.precision import computing, enable, rounded
from lipzoo.recipe.recipe import Recipe
from lipzoo.devices.mesh import batched, gathered, place, process_rows, replicated, spread, stored
from lipzoo.theory.weight import Weight, exact_norm, gram_norm, map_weights, weights

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[["State", dict[str, Array]], tuple["State", Metrics]]
FreeStep = Callable[["State", dict[str, Array], float | Float[Array, ""]], tuple["State", Metrics]]
Watch = Callable[[int, int], None]
"""Told after each batch of an evaluation how many are done, and of how many; may raise to stop it."""


EVALUATED_TOGETHER = {1: 1024, 2: 64}
"""Examples in a batch of the evaluation, by the dimensions of their labels: images, windows of tokens."""
LARGEST_LOGITS = 2**29
"""Logits of such a batch, at most: float32 numbers that take two gigabytes."""
AHEAD = 2
"""Batches of an evaluation that devices have waiting: more would not be faster, and could not be called off."""
FULL = Mask()


@runtime_checkable
class Evaluate(Protocol):
    """A model's loss and accuracy over every test split."""

    def __call__(self, model: AbstractModule, watch: Watch = ...) -> dict[str, float]: ...


class State(eqx.Module):
    """Everything that a step changes. All leaves are arrays, so it can be jitted, donated and stored as it is."""

    model: AbstractModule
    opt_state: Any
    step: Int[Array, ""]
    key: UInt32[Array, " words"]


def init_state(recipe: Recipe, mesh: Mesh) -> State:
    """The state before the first step, on the mesh. Where the recipe computes in float64, jax does so from here on."""
    enable(recipe.training.model_dtype, recipe.constraint.project_dtype)
    model_key, step_key = jax.random.split(jax.random.key(recipe.training.seed))
    # Step by step: compiled as one, the factorizations of a GPT's first weights run at once, and on few cores XLA's CPU
    # backend then waits for ever.
    model: Any = recipe.build_model(model_key)
    opt_state = recipe.optimizer.build(recipe.ebc.build()).init(model)
    state = State(model, opt_state, jnp.zeros((), jnp.int32), jax.random.key_data(step_key))
    return jax.device_put(state, stored(mesh, state))


def abstract_state(recipe: Recipe) -> Any:
    """The shapes of a state."""
    model = recipe.abstract_model()
    opt_state = jax.eval_shape(recipe.optimizer.build(recipe.ebc.build()).init, model)
    rest = jax.eval_shape(lambda: (jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0))))
    return eqx.filter_eval_shape(State, model, opt_state, *rest)


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
    optimizer = recipe.optimizer.build(recipe.ebc.build(), functools.partial(spread, mesh))
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
            return project(weight.with_array(array), constraint, step).array

        def measured(array: Array, change: Array) -> Array:
            # The update includes the decay, so it counts as part of the update's norm.
            step = Step(norms.gram_norm(change) * weight.rms_factor, key=own_key)
            return project(weight.with_array(array), constraint, step).array

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
    return losses.mean().astype(jnp.float32), _correct(logits, labels).mean()


def _correct(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
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


def make_evaluate(recipe: Recipe, mesh: Mesh, data: Images | Text | Tokens) -> Evaluate:
    """A function from a model to its loss and accuracy over every test split, in batches on the mesh.

    They are called val_loss and val_accuracy for the whole test split. Few batches are under way at any time, so that
    whoever watches them can call the rest off.
    """
    classes = recipe.data.sizes[1]
    splits = {name: _on_device(split, mesh, classes) for name, split in data.tests.items()}

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(model: AbstractModule, batch: dict[str, Array]) -> tuple[Array, Array]:
        dtype = recipe.training.model_dtype
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            logits = forward(compute_copy(recipe, mesh, model), batch["input"], data.white, dtype).astype(jnp.float32)
        scaled = recipe.training.temperature * logits
        losses = optax.softmax_cross_entropy_with_integer_labels(scaled, batch["label"])
        correct = _correct(logits, batch["label"])
        return (losses * batch["weight"]).sum(), (correct * batch["weight"]).sum()

    count = sum(len(batches) for batches, _ in splits.values())

    def evaluate(model: AbstractModule, watch: Watch = lambda done, count: None) -> dict[str, float]:
        values, done = {}, 0
        for name, (batches, total) in splits.items():
            parts: list[tuple[Array, Array]] = []
            for batch in batches:
                parts.append(sums(model, batch))
                jax.block_until_ready(parts[max(len(parts) - 1 - AHEAD, 0)])
                done += 1
                watch(done, count)
            loss, correct = np.sum(jax.device_get(parts), axis=0)
            values |= {f"{name}_loss": float(loss / total), f"{name}_accuracy": float(correct / total)}
        return values

    return evaluate


def _on_device(split: Split, mesh: Mesh, classes: int) -> tuple[list[dict[str, Array]], float]:
    """A split in batches, and the number of its labels."""
    time = split.label[0].size
    together = min(EVALUATED_TOGETHER[split.label.ndim], max(1, LARGEST_LOGITS // (classes * time)))
    size = mesh.size * -(-together // mesh.size)
    rows = process_rows(mesh, size)
    padded = [_pad(split, start, size) for start in range(0, len(split.label), size)]
    total = sum(float(batch["weight"].sum()) for batch in padded)
    return [place({name: x[rows] for name, x in batch.items()}, mesh) for batch in padded], total


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
def all_finite(model: AbstractModule) -> Bool[Array, ""]:
    """Whether no weight holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.isfinite(weight.array).all() for weight in weights(model)]))


@jax.jit
def layer_norms(model: AbstractModule) -> dict[str, Float[Array, ""]]:
    """Upper bounds of every weight's norm, on the device."""
    return {weight.name: gram_norm(weight).max() for weight in weights(model)}


def seal(model: AbstractModule, watch: Callable[[], None] = lambda: None) -> AbstractModule:
    """`model` with every weight that exceeds its cap cut back to it exactly, by SVD in float64 on the host.

    `watch` is called before each weight.
    """

    def cut(weight: Weight) -> Weight:
        watch()
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
