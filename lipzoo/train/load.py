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
from lipzoo.train.arrays import Shapes, read_arrays, shapes_of, with_arrays
from lipzoo.train.digests import Arrays, digest
from lipzoo.train.exported import read as read_file
from lipzoo.train.packed import PACKINGS, packed_like, unpacked
from lipzoo.train.reading import (
    Damaged,
    check_files,
    find_steps,
    read_about,
    read_recipe,
    reading,
    step_number,
    usable_recipe,
)
from lipzoo.train.zoo import located

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


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """What a checkpoint or an exported file holds: arrays as they lie there, in the format `stored`, and of what."""

    arrays: Arrays
    recipe: Recipe
    path: Path
    step: int
    stored: str = "float32"

    def loaded(self, device: Sharding) -> Loaded:
        """The model with these weights. Raises Damaged."""
        model = self.recipe.abstract_model()
        arrays = self.arrays if self.stored == "float32" else unpacked(model, self.arrays, device)
        return Loaded(with_arrays(model, arrays), self.recipe, self.path, self.step, digest(arrays), self.stored)


def load(directory: str | Path, device: Sharding | None = None, item: str = "model") -> Loaded:
    """The model of the newest checkpoint under `directory`, built from the recipe stored with it.

    **Arguments:**

    - `directory`: a run, its `checkpoints` folder, or one step; a file of `lipzoo export`; or `zoo:NAME`, a model that
      comes with the library (`lipzoo zoo` lists them).
    - `device`: where to put the weights; by default the first device.
    - `item`: `model`, or `average` for the mean of a run's weights (`--ema`).

    **Raises:** UserError if there is no checkpoint or it is damaged. A tool must not silently speak of other weights
    than those asked for, so there is no falling back here; the message names the steps that are left.
    """
    return load_stored(directory, device, item)[1]


def load_stored(directory: str | Path, device: Sharding | None = None, item: str = "model") -> tuple[Stored, Loaded]:
    """As `load`, with the arrays as they are stored beside the model."""
    device = device or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    path = located(directory)
    if path.is_file():
        return _of_file(path, device, item)
    steps = find_steps(path)
    if not steps:
        raise UserError(f"{directory} holds no finished checkpoint: has the run reached --save-interval?")
    step, *others = steps
    try:
        stored = _of_step(step, device, item)
        return stored, stored.loaded(device)
    except Damaged as error:
        hint = f"; try {others[0]}" if others else ""
        raise UserError(f"the checkpoint {step} {error.says}: {error}{hint}") from error


def _of_step(step: Path, device: Sharding, item: str) -> Stored:
    check_files(step)
    recipe, number = read_recipe(step), _held_step(step)
    stored = read_about(step).get("stored", "float32")
    arrays = read_arrays(step, item, _like(recipe, stored, device, step))
    if step_number(step) not in (None, number):
        print(f"warning: {step} holds step {number}", file=sys.stderr)
    return Stored(arrays, recipe, step, number, stored)


def _like(recipe: Recipe, stored: str, device: Sharding, path: Path) -> Arrays:
    """Shapes and types of the arrays of a model's weights, in whatever format they are stored."""
    model = recipe.abstract_model()
    if stored == "float32":
        return {w.name: jax.ShapeDtypeStruct(w.array.shape, w.array.dtype, sharding=device) for w in weights(model)}
    if stored not in PACKINGS:
        raise UserError(f"the weights of {path} are stored as {stored}, which lipzoo {VERSION} does not know")
    return packed_like(model, PACKINGS[stored], device)


def _of_file(path: Path, device: Sharding, item: str) -> tuple[Stored, Loaded]:
    """What an exported file holds, once it is seen to be what it says. Raises UserError."""
    try:
        with reading(path):
            arrays, notes = read_file(path)
            if item not in ("model", notes["weights"]):
                raise UserError(f"{path} holds one set of weights, and no mean beside it: export that from the run")
            recipe = usable_recipe(notes["recipe"], notes["lipzoo"], path)
            _check_same(path, shapes_of(arrays), shapes_of(_like(recipe, notes["stored"], device, path)))
            placed = {name: jax.device_put(array, device) for name, array in arrays.items()}
            stored = Stored(placed, recipe, path, int(notes["step"]), notes["stored"])
            loaded = stored.loaded(device)
            if {loaded.sha256} != {notes["weights_sha256"], notes["certificate"]["weights_sha256"]}:
                raise Damaged("its certificate is about other weights")
            return stored, loaded
    except Damaged as error:
        raise UserError(f"{path} is damaged, or no file of lipzoo export: {error}") from error


def _check_same(path: Path, found: Shapes, wanted: Shapes) -> None:
    """Raises UserError, with names, unless a file holds what its recipe's model has."""
    if different := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
        names = ", ".join(different[:3])
        raise UserError(f"{path} holds the weights of another model than that of its recipe: {names}")


def _held_step(step: Path) -> int:
    """The step that a checkpoint holds, whatever its folder is called. Format 1 tells it by the folder alone."""
    number = read_about(step).get("step", step_number(step))
    if number is None:
        raise UserError(f"the checkpoint {step} does not say its step: call its folder by its step")
    return number
