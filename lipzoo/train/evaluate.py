"""A model's loss and accuracy over whole test splits."""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lipzoo.data import Data, Split
from lipzoo.devices.mesh import place, process_rows, replicated
from lipzoo.models import AbstractModule
from lipzoo.recipe.recipe import Recipe
from lipzoo.train.plan import Plan, resolve
from lipzoo.train.step import KEPT, Computation, correct

Watch = Callable[[int, int], None]
"""Told after each batch of an evaluation how many are done, and of how many; may raise to stop it."""
EVALUATED_TOGETHER = {1: 1024, 2: 64}
"""Examples in a batch of the evaluation, by the dimensions of their labels: images, windows of tokens."""
LARGEST_LOGITS = 2**29
"""Logits of such a batch, at most: float32 numbers that take two gigabytes."""
AHEAD = 2
"""Batches of an evaluation that devices have waiting: more would not be faster, and could not be called off."""


EPSILON = 36 / 255
"""The ℓ₂ distance at which certified accuracy is shown while a classifier of images trains."""


class Proved(NamedTuple):
    """What is proved of a model's weights: the RMS → RMS constant, and, of classifiers, Dⱼₖ with
    |Δzⱼ - Δzₖ| ≤ Dⱼₖ‖Δx‖₂."""

    lipschitz: float
    pairs: Float[np.ndarray, "classes classes"] | None


Prove = Callable[[AbstractModule], Proved | None]
"""Bounds a model whose arrays are of this process, as a run goes on; None where that would take too long."""


@runtime_checkable
class Evaluate(Protocol):
    """A model's loss and accuracy over every test split, with what is proved of it if that is given."""

    def __call__(self, model: AbstractModule, watch: Watch = ..., proved: Proved | None = ...) -> dict[str, float]: ...


def make_evaluate(recipe: Recipe, mesh: Mesh, data: Data) -> Evaluate:
    """A function from a model to its loss and accuracy over every test split, in batches on the mesh.

    They are called val_loss and val_accuracy for the whole test split; with pairs of constants, val_certified_accuracy
    is the fraction that no change of the pixels of ℓ₂ size `EPSILON` makes wrong. Few batches are under way at any
    time, so that whoever watches them can call the rest off.
    """
    plan, hyper = resolve(recipe)
    splits = {name: _on_device(split, mesh, recipe.data.sizes.classes) for name, split in data.tests.items()}
    sums = _make_sums(plan, mesh)
    count = sum(len(batches) for batches, _ in splits.values())

    def evaluate(
        model: AbstractModule, watch: Watch = lambda done, count: None, proved: Proved | None = None
    ) -> dict[str, float]:
        values, done = {} if proved is None else {"val_lipschitz": proved.lipschitz}, 0
        pairs = None if proved is None or proved.pairs is None else proved.pairs.astype(np.float32)
        for name, (batches, total) in splits.items():
            parts: list[tuple[Array, ...]] = []
            for batch in batches:
                parts.append(sums(model, batch, hyper.temperature, pairs))
                jax.block_until_ready(parts[max(len(parts) - 1 - AHEAD, 0)])
                done += 1
                watch(done, count)
            names = (f"{name}_loss", f"{name}_accuracy", f"{name}_certified_accuracy")
            values |= dict(zip(names, (np.sum(jax.device_get(parts), axis=0) / total).tolist(), strict=False))
        return values

    return evaluate


@functools.lru_cache(KEPT)
def _make_sums(plan: Plan, mesh: Mesh) -> Callable[..., tuple[Array, ...]]:
    """Sums over a batch of losses, right answers and, with pairs of constants, of what is certified."""
    computation = Computation(plan, mesh)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(
        model: AbstractModule, batch: dict[str, Array], temperature: Array, pairs: Array | None
    ) -> tuple[Array, ...]:
        logits = computation.logits(computation.compute_copy(model), batch["input"]).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(temperature * logits, batch["label"])
        right = correct(logits, batch["label"])
        kept = () if pairs is None else ((_holds(logits, batch["label"], pairs) * batch["weight"]).sum(),)
        return (losses * batch["weight"]).sum(), (right * batch["weight"]).sum(), *kept

    return sums


def _holds(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], pairs: Float[Array, "classes classes"]
) -> Float[Array, " batch"]:
    """1 where the label's logit is above each other one by more than a change of size `EPSILON` can undo."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    above = own - logits > EPSILON * pairs[labels]
    return (above | (jnp.arange(logits.shape[1])[None] == labels[:, None])).all(1).astype(jnp.float32)


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
