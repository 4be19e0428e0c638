"""Models from checkpoints, for tools and notebooks."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lipzoo.data import DataConfig
from lipzoo.models import AbstractModule
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.version import VERSION
from lipzoo.theory.weight import weights
from lipzoo.train.arrays import read_arrays, with_arrays
from lipzoo.train.digests import Arrays, digest
from lipzoo.train.packed import PACKINGS, packed_like, unpacked
from lipzoo.train.reading import Damaged, check_files, find_steps, read_about, read_recipe, step_number

TOGETHER = 4096
"""Images that `Loaded.predict` looks at in one piece."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model restored from a checkpoint, with where it came from. `stored` is the format of its weights there."""

    model: AbstractModule
    recipe: Recipe
    path: Path
    step: int
    sha256: str
    stored: str = "float32"

    def predict(self, images: ArrayLike) -> Float[np.ndarray, "n classes"]:
        """The logits of images of the kind that the model was trained on, in float32.

        Whole numbers are pixel values as the source has them, floats lie in [0, 1]; channels first or last (see
        `lipzoo.data.images.as_pixels`).

        **Raises:** ValueError if they have another shape or values out of range, or if this is no model of images.
        """
        data = self.recipe.data
        if not isinstance(data, DataConfig):
            raise ValueError(f"{self.path} holds a model of text: see lipzoo.sample")
        pixels = data.as_pixels(images)
        parts = [pixels[start : start + TOGETHER] for start in range(0, max(len(pixels), 1), TOGETHER)]
        return np.concatenate([np.asarray(_run(self.model, part)) for part in parts])


@jax.jit
def _run(model: AbstractModule, pixels: Float[Array, "n pixels"]) -> Float[Array, "n classes"]:
    return jax.vmap(model)(pixels)


def load(directory: str | Path, device: Sharding | None = None, item: str = "model") -> Loaded:
    """The model of the newest checkpoint under `directory`, built from the recipe stored with it.

    **Arguments:**

    - `directory`: a run, its `checkpoints` folder, or one step.
    - `device`: where to put the weights; by default the first device.
    - `item`: `model`, or `average` for the mean of a run's weights (`--ema`).

    **Raises:** UserError if there is no checkpoint or it is damaged. A tool must not silently speak of other weights
    than those asked for, so there is no falling back here; the message names the steps that are left.
    """
    steps = find_steps(Path(directory))
    if not steps:
        raise UserError(f"{directory} holds no finished checkpoint: has the run reached --save-interval?")
    step, *others = steps
    try:
        return _load(step, device or jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), item)
    except Damaged as error:
        hint = f"; try {others[0]}" if others else ""
        raise UserError(f"the checkpoint {step} {error.says}: {error}{hint}") from error


def _load(step: Path, device: Sharding, item: str) -> Loaded:
    check_files(step)
    recipe, number = read_recipe(step), _held_step(step)
    abstract, stored = recipe.abstract_model(), read_about(step).get("stored", "float32")
    arrays = _read_weights(step, item, abstract, stored, device)
    if step_number(step) not in (None, number):
        print(f"warning: {step} holds step {number}", file=sys.stderr)
    return Loaded(with_arrays(abstract, arrays), recipe, step, number, digest(arrays), stored)


def _read_weights(step: Path, item: str, model: AbstractModule, stored: str, device: Sharding) -> Arrays:
    """The arrays of a model's weights, in whatever format they are stored."""
    if stored == "float32":
        like = {w.name: jax.ShapeDtypeStruct(w.array.shape, w.array.dtype, sharding=device) for w in weights(model)}
        return read_arrays(step, item, like)
    if stored not in PACKINGS:
        raise UserError(f"the weights of {step} are stored as {stored}, which lipzoo {VERSION} does not know")
    return unpacked(model, read_arrays(step, item, packed_like(model, PACKINGS[stored], device)), device)


def _held_step(step: Path) -> int:
    """The step that a checkpoint holds, whatever its folder is called. Format 1 tells it by the folder alone."""
    number = read_about(step).get("step", step_number(step))
    if number is None:
        raise UserError(f"the checkpoint {step} does not say its step: call its folder by its step")
    return number
