"""Checkpoints with Orbax: weights, the rest of the state, the data iterator and the recipe, together.

A checkpoint has five items: `model` (weights by name), `rest` (optimizer, step, random key), `data` (the state of
grain's iterator, JSON), `recipe` (JSON) and `digests` (checksums of all arrays, sha256 of the recipe). Weights stand
apart so that a tool can restore them without the optimizer; digests tell damage that the storage format does not
notice. Every process writes what lies on its devices, and any number of them can read it.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jaxtyping import Array, Float, UInt32
from numpy.typing import ArrayLike

import lipzoo
from lipzoo.data import DataConfig
from lipzoo.errors import UserError
from lipzoo.files import expanded
from lipzoo.models import AbstractModule
from lipzoo.recipe import Recipe
from lipzoo.train import State
from lipzoo.weight import map_weights, weights

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells of every file; what it raises reaches us anyway.
_policies = ocp.checkpoint_managers
Arrays = dict[str, Any]
TOGETHER = 4096
"""Images that `Loaded.predict` looks at in one piece."""
SPARE_BYTES = 1 << 19
"""Room for what a checkpoint holds beside the arrays."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model restored from a checkpoint, with where it came from."""

    model: AbstractModule
    recipe: Recipe
    path: Path
    step: int
    sha256: str

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


class Damaged(Exception):
    """A checkpoint that cannot be restored; the message says why."""


class Checkpoints:
    """The checkpoints of a run: `<run>/checkpoints/<step>`, the newest `keep` and the one of least validation loss."""

    def __init__(self, run: Path, keep: int):
        newest = _policies.LatestN(keep)
        best = _policies.BestN(
            get_metric_fn=lambda metrics: -metrics["val_loss"], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policies.AnyPreservationPolicy([newest, best]), cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager((run / "checkpoints").absolute(), options=options)

    def save(self, state: State, data: grain.DatasetIterator, recipe: Recipe, metrics: Mapping[str, float]) -> None:
        """Writes a checkpoint in the background; it appears under its step once it is complete."""
        model, rest = weight_arrays(state.model), _rest_arrays(state)
        place = ocp.args.JsonSave(
            dict(data.get_state())
        )  # The same in every process, so any number of them can resume.
        items = ocp.args.Composite(**_items({"model": model, "rest": rest}, recipe), data=place)
        step = int(state.step)
        self._check_space(sum(array.nbytes for array in (*model.values(), *rest.values())))
        with self._writing():
            if step in self._manager.all_steps():  # A damaged one, which a resumed run has come past.
                self._manager.delete(step)
            self._manager.save(step, args=items, metrics=dict(metrics) or None, force=True)

    def _check_space(self, size: int) -> None:
        """Refuses to begin what cannot be finished: the writing itself goes on beside the training."""
        free = shutil.disk_usage(self._manager.directory).free
        if free < size + SPARE_BYTES:
            raise UserError(
                f"the disk is full: a checkpoint needs {size + SPARE_BYTES:,} bytes, {self._manager.directory} has "
                f"{free:,} left; free some space and go on with --resume {Path(self._manager.directory).parent}"
            )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, step: int, like: State, data: grain.DatasetIterator) -> State:
        """The state at `step`, on the devices of `like`; sets the data iterator back to it. Raises Damaged."""
        directory = Path(self._manager.directory) / str(step)
        model = read_arrays(directory, "model", weight_arrays(like.model))
        rest = read_arrays(directory, "rest", _rest_arrays(like))
        try:
            data.set_state(read_json(directory, "data"))
        except Exception as error:  # Whatever a broken file makes the reader raise.
            raise Damaged(f"its data iterator cannot be read ({_first_line(error)})") from error
        restored = like_leaves(like, rest)
        return dataclasses.replace(restored, model=with_arrays(like.model, model))

    def close(self) -> None:
        """Waits for what is being written."""
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the storage layers raise when they cannot write is of many types; to the user it is one mishap."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"could not write a checkpoint to {self._manager.directory} ({_mishap(error)}): "
                "earlier checkpoints are whole; free some space and go on with "
                f"--resume {Path(self._manager.directory).parent}"
            ) from error


def save_model(run: Path, step: int, model: AbstractModule, recipe: Recipe) -> Path:
    """Writes a checkpoint of weights alone: tools can load it, but no run can go on from it."""
    path = (run / "checkpoints" / str(step)).absolute()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, ocp.args.Composite(**_items({"model": weight_arrays(model)}, recipe)))
    except Exception as error:  # As in Checkpoints: of many types, to the user one mishap.
        raise UserError(
            f"could not write {path} ({_mishap(error)}): free some space, delete {run}, try again"
        ) from error
    return path


def _items(arrays: Mapping[str, Arrays], recipe: Recipe) -> dict[str, Any]:
    """Arrays, recipe, and the digests of both, as Orbax takes them."""
    digests = {name: checksums(part) for name, part in arrays.items()} | {"recipe": _json_digest(recipe.to_json())}
    return {
        **{name: ocp.args.StandardSave(part) for name, part in arrays.items()},
        "recipe": ocp.args.JsonSave({"lipzoo": lipzoo.__version__, "recipe": recipe.to_json()}),
        "digests": ocp.args.JsonSave(digests),
    }


def weight_arrays(model: AbstractModule) -> Arrays:
    """The arrays of all weights, by name."""
    return {weight.name: weight.array for weight in weights(model)}


def with_arrays(model: AbstractModule, arrays: Arrays) -> AbstractModule:
    """`model` with the arrays of `weight_arrays`."""
    return map_weights(lambda weight: weight.with_array(arrays[weight.name]), model)


def _rest_arrays(state: State) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path((state.opt_state, state.step, state.key))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def like_leaves(state: State, arrays: Arrays) -> State:
    """`state` with everything but the model taken from the arrays of `_rest_arrays`, in the same order."""
    rest = (state.opt_state, state.step, state.key)
    leaves = [arrays[jax.tree_util.keystr(path)] for path, _ in jax.tree_util.tree_leaves_with_path(rest)]
    return State(state.model, *jax.tree.unflatten(jax.tree.structure(rest), leaves))


def checksums(arrays: Arrays) -> dict[str, str]:
    """A checksum of every array, computed where it lies, the same on any number of devices and processes.

    Σ bitsᵢ·(2h(i) + 1) mod 2³² over all entries i, for two hashes h. The factors are odd, so a change of one entry
    always shows; other damage goes unnoticed with a probability of about 2⁻⁶⁴.
    """
    return {name: f"{int(a):08x}{int(b):08x}" for name, (a, b) in jax.device_get(_sums(arrays)).items()}


@jax.jit
def _sums(arrays: Arrays) -> Arrays:
    return jax.tree.map(lambda x: (_weighted_sum(x, 0x9E3779B1), _weighted_sum(x, 0x85EBCA77)), arrays)


def _weighted_sum(x: Array, multiplier: int) -> UInt32[Array, ""]:
    kinds = {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}
    bits = jax.lax.bitcast_convert_type(x, kinds[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (index + 1) * jnp.uint32(multiplier)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(multiplier)
    return jnp.sum(bits * ((mixed ^ (mixed >> 13)) << 1 | 1), dtype=jnp.uint32)


def digest(arrays: Arrays) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_arrays(directory: Path, item: str, like: Arrays) -> Arrays:
    """An item's arrays, with the shapes, types and devices of `like`. Raises Damaged if they are not what was saved."""
    if not (directory / item).is_dir():
        raise Damaged(f"its {item} is missing")
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in like.items()}
    path = (directory / item).absolute()
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_readers(abstract)) as checkpointer:
            stored = checkpointer.metadata(path).item_metadata
            _check_same(abstract, {name: (tuple(x.shape), x.dtype) for name, x in dict(stored).items()})
            arrays = checkpointer.restore(path, abstract)
        expected = read_json(directory, "digests")[item]
    except Damaged:
        raise
    except Exception as error:  # Whatever a broken file makes the reader raise.
        raise Damaged(f"its {item} cannot be read ({_first_line(error)})") from error
    found = checksums(arrays)
    if different := sorted(name for name in found if found[name] != expected.get(name)):
        raise Damaged(f"its {item} does not have the checksums noted when it was saved: {', '.join(different[:3])}")
    return arrays


def _readers(like: Arrays) -> ocp.options.MultiprocessingOptions:
    """All processes if the arrays go to all of them, else this one alone, so that it waits for no other."""
    if all(x.sharding.is_fully_addressable for x in like.values()):
        index = jax.process_index()
        return ocp.options.MultiprocessingOptions(index, {index}, f"process_{index}")
    return ocp.options.MultiprocessingOptions()


def _check_same(expected: Arrays, stored: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
    """Orbax casts and pads silently, so shapes and types are compared first."""
    wanted = {name: (tuple(x.shape), jnp.dtype(x.dtype)) for name, x in expected.items()}
    found = {name: (shape, jnp.dtype(dtype)) for name, (shape, dtype) in stored.items()}
    if wanted != found:
        different = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
        raise Damaged(f"its arrays are not those of the recipe: {', '.join(different[:3])}")


def read_json(directory: Path, item: str) -> Any:
    """A JSON item of a checkpoint. Read as a file, since Orbax's reader waits for other processes."""
    return json.loads((directory / item / "metadata").read_text())


def _mishap(error: Exception) -> str:
    return "the disk is full" if "No space left" in str(error) else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def find_steps(directory: Path) -> list[Path]:
    """The checkpoints that a run, its `checkpoints` folder, or a single step holds, newest first."""
    directory = expanded(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: give a run, its checkpoints folder, or one step in it")
    if (directory / "recipe").is_dir():
        return [directory]
    folder = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda path: int(path.name), reverse=True)


def read_recipe(step: Path) -> Recipe:
    """The recipe that a checkpoint was trained by. Raises Damaged if it cannot be read."""
    try:
        stored = read_json(step, "recipe")["recipe"]
        expected = read_json(step, "digests")["recipe"]
        recipe = Recipe.from_json(stored)
        if refusal := recipe.model.refusal():
            raise UserError(f"there is no model of its recipe: {refusal}")
    except UserError as error:
        raise Damaged(str(error)) from error
    except Exception as error:  # Whatever a broken file makes the reader raise.
        raise Damaged(f"its recipe cannot be read ({_first_line(error)})") from error
    if _json_digest(stored) != expected:
        raise Damaged("its recipe does not have the sha256 that was noted when it was saved")
    return recipe


def load(directory: str | Path, device: Sharding | None = None) -> Loaded:
    """The model of the newest checkpoint under `directory`, built from the recipe stored with it.

    **Arguments:**

    - `directory`: a run, its `checkpoints` folder, or one step.
    - `device`: where to put the weights; by default the first device.

    **Raises:** UserError if there is no checkpoint or it is damaged. A tool must not silently speak of other weights
    than those asked for, so there is no falling back here; the message names the steps that are left.
    """
    steps = find_steps(Path(directory))
    if not steps:
        raise UserError(f"{directory} holds no finished checkpoint: has the run reached --save-interval?")
    step, *others = steps
    device = device or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        recipe = read_recipe(step)
        abstract = recipe.abstract_model()
        like = {w.name: jax.ShapeDtypeStruct(w.array.shape, w.array.dtype, sharding=device) for w in weights(abstract)}
        arrays = read_arrays(step, "model", like)
    except Damaged as error:
        hint = f"; try {others[0]}" if others else ""
        raise UserError(f"the checkpoint {step} is damaged: {error}{hint}") from error
    return Loaded(with_arrays(abstract, arrays), recipe, step, int(step.name), digest(arrays))
