"""Reading checkpoints: which there are, whether one is whole, and what it holds (see `lipzoo.train.checkpoint`).

Nothing of a step is used before all of it was looked at. What fails its checksums or cannot be read as what it should
be is `Damaged`; what is whole but cannot be used here (no permission, no memory, another version of lipzoo) is a
UserError that says so.
"""

import contextlib
import dataclasses
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

import lipzoo
from lipzoo.data import DataConfig
from lipzoo.train.digests import Arrays, checksums, digest, host_checksum, json_digest
from lipzoo.system.errors import UserError
from lipzoo.system.files import LARGEST_JSON, check_regular, expanded, plain, read_json
from lipzoo.recipe.format1 import current_name
from lipzoo.models import AbstractModule
from lipzoo.system.quiet import hush
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.weight import map_weights, weights

hush()
STEP = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
WORDS = re.compile(r"(.*):(int64|uint64|float64)", re.DOTALL)
"""The name of an array of 64 bits, which is stored as pairs of 32-bit words."""
MOST_FILES = 200_000
"""Files of a step beyond which it is no checkpoint but a circle of links."""
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors which mean that a file is not there, or is something else."""
NOT_DAMAGE = re.compile(
    "PERMISSION_DENIED|RESOURCE_EXHAUSTED|Out of memory|Cannot allocate memory|Too many open files|Input/output error"
)
"""What readers say of a machine that cannot read a file now, whatever is in it."""
TOGETHER = 4096
"""Images that `Loaded.predict` looks at in one piece."""
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


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

    says = "is damaged"


class Misplaced(Damaged):
    """A checkpoint under the number of another step."""

    says = "is not what its name says"


@contextlib.contextmanager
def reading(step: Path, item: str = "") -> Iterator[None]:
    """Whatever a broken file makes readers raise is damage, unless it is the machine's fault."""
    try:
        yield
    except (Damaged, UserError):
        raise
    except Exception as error:
        line = _said(error)
        denied = isinstance(error, OSError) and error.errno not in (None, *GONE)
        if denied or isinstance(error, MemoryError) or NOT_DAMAGE.search(str(error)):
            raise UserError(f"cannot read {step / item} ({line}): see to that and try again") from error
        raise Damaged(f"{f'its {item}' if item else 'it'} cannot be read ({line})") from error


def _said(error: Exception) -> str:
    """What a reader says of a file; Python's own words for what is of another type say nothing to a user."""
    if isinstance(error, (TypeError, AttributeError, LookupError)):
        return "it is not laid out as it was written"
    return first_line(error)


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(" See full TensorStore")[0][:120]


def step_number(path: Path) -> int | None:
    """The number of a step by its folder's name, or None if that is no step's."""
    return int(path.name) if STEP.fullmatch(path.name) else None


def find_steps(directory: Path) -> list[Path]:
    """The checkpoints that a run, its `checkpoints` folder, or a single step holds, newest first."""
    directory = Path(os.path.abspath(expanded(directory)))  # So that `.` has a name.
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: give a run, its checkpoints folder, or one step in it")
    if (directory / "recipe").is_dir():
        return [directory]
    folder = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    numbered = [(number, path) for path in folder.iterdir() if (number := step_number(path)) is not None]
    return [path for _, path in sorted(numbered, reverse=True)]


def check_files(step: Path) -> None:
    """Raises Damaged if a step holds what a reader could wait at for ever, or read for ever."""
    count = 0
    with reading(step):
        if not step.is_dir():
            raise Damaged("it is no folder")
        for folder, _, names in os.walk(step, followlinks=True, onerror=_raise):
            count += len(names) + 1
            if count > MOST_FILES:
                raise Damaged(f"it holds more than {MOST_FILES:,} files")
            for name in names:
                size = check_regular(Path(folder, name))
                if Path(folder).name != "d" and size > LARGEST_JSON:  # Arrays lie in folders called d.
                    raise Damaged(f"its {name} has {size:,} bytes")


def _raise(error: OSError) -> None:
    raise error


def item_json(step: Path, item: str) -> Any:
    """A JSON item of a checkpoint. Read as a file, since Orbax's reader waits for other processes. Raises Damaged."""
    with reading(step, item):
        return read_json(step / item / "metadata")


def read_about(step: Path) -> dict[str, Any]:
    """What is noted of a checkpoint: version, recipe and, since format 2, step and metrics. Raises Damaged."""
    about, digests = item_json(step, "recipe"), item_json(step, "digests")
    with reading(step, "recipe"):
        expected, found = digests["recipe"], about if "step" in about else about["recipe"]
        if not isinstance(about["lipzoo"], str) or not isinstance(about.get("step", 0), int):
            raise ValueError("it is another kind of file")
    if json_digest(found) != expected:
        raise Damaged("its recipe does not have the sha256 that was noted when it was saved")
    return about


def read_recipe(step: Path) -> Recipe:
    """The recipe that a checkpoint was trained by. Raises Damaged, or UserError if its version is another."""
    about = read_about(step)
    try:
        recipe = Recipe.from_json(about["recipe"], about["lipzoo"])
    except UserError as error:
        raise UserError(f"cannot use the checkpoint {step}: {error}") from error
    if refusal := recipe.model.refusal():
        raise UserError(f"cannot use the checkpoint {step}: there is no model of its recipe: {refusal}")
    return recipe


def check_whole(step: Path) -> None:
    """Looks at all of a step but its arrays, to go on from it. Raises Damaged."""
    check_files(step)
    about, digests = read_about(step), item_json(step, "digests")
    if not isinstance(digests, dict):
        raise Damaged("its digests are not laid out as they were written")
    if about.get("step", step_number(step)) != step_number(step):
        raise Misplaced(f"it holds step {about['step']}")
    if "rest" not in digests and not (step / "rest").exists():
        raise UserError(f"the checkpoint {step} holds weights alone: no run can go on from it; start a new one")
    first_format = "step" not in about  # Which noted no digest of the data iterator.
    if missing := {"model", "rest", "recipe", *([] if first_format else ["data"])} - set(digests):
        raise Damaged(f"its digests lack {', '.join(sorted(missing))}")
    data = item_json(step, "data")
    if not isinstance(data, dict) or json_digest(data) != digests.get("data", json_digest(data)):
        raise Damaged("its data iterator is not what was saved")


def read_arrays(step: Path, item: str, like: Arrays) -> Arrays:
    """An item's arrays, with the shapes, types and devices of `like`. Raises Damaged if they are not what was saved.

    An array of 64 bits and one of 32 stand for each other, so that it does not matter whether JAX_ENABLE_X64 was set.
    """
    sharding = {name: x.sharding for name, x in like.items()}

    def abstract(key: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding[_name(key)])

    arrays = _read(step, item, {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in like.items()}, abstract)
    _compare(step, item, checksums(arrays))
    with reading(step, item):
        found = {_name(key): _like(key, array, like[_name(key)]) for key, array in arrays.items()}
    empty = {n: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding) for n, x in like.items() if 0 in x.shape}
    return found | empty


def check_arrays(step: Path, item: str, like: Shapes) -> None:
    """Reads an item's arrays into this process's memory, without a device. Raises Damaged."""
    arrays = _read(step, item, like, lambda key, shape, dtype: np.empty(shape, dtype))
    _compare(step, item, {key: host_checksum(array) for key, array in arrays.items()})


def _read(step: Path, item: str, like: Shapes, abstract: Callable[[str, tuple[int, ...], np.dtype], Any]) -> Arrays:
    """The arrays as they are stored, where `abstract` puts them, once they are seen to be those of `like`."""
    if not (step / item).is_dir():
        raise Damaged(f"its {item} is missing")
    path, index = plain(step) / item, jax.process_index()
    alone = ocp.options.MultiprocessingOptions(index, {index}, f"process_{index}")  # So that it waits for no other.
    with reading(step, item):
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
        if metadata is None:
            raise ValueError("what it holds is not noted")
        stored = {key: (tuple(x.shape), np.dtype(x.dtype)) for key, x in dict(metadata).items()}
        _check_same(step, item, like, stored)
        wanted = {key: abstract(key, shape, dtype) for key, (shape, dtype) in stored.items()}
        shardings = [x.sharding for x in wanted.values() if isinstance(x, jax.ShapeDtypeStruct)]
        together = any(not sharding.is_fully_addressable for sharding in shardings)
        options = ocp.options.MultiprocessingOptions() if together else alone
        with ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
            return checkpointer.restore(path, wanted)


def _check_same(step: Path, item: str, like: Shapes, stored: Shapes) -> None:
    """Orbax casts and pads silently, so names, shapes and kinds of types are compared first."""
    wanted = {name: (shape, _kind(dtype)) for name, (shape, dtype) in like.items() if 0 not in shape}
    found = {}
    for key, (shape, dtype) in stored.items():
        words = WORDS.fullmatch(key)
        found[_name(key)] = (shape[:-1], _kind(np.dtype(words[2]))) if words else (shape, _kind(dtype))
    if wanted == found:
        return
    different = ", ".join(sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))[:3])
    if wanted.keys() != found.keys() and set(item_json(step, "digests").get(item) or {}) == set(stored):
        raise UserError(
            f"the {item} of the checkpoint {step}, written by lipzoo {read_about(step)['lipzoo']}, is not laid out as "
            f"lipzoo {lipzoo.__version__} would: use the version that wrote it ({different})"
        )
    raise Damaged(f"its arrays are not those of the recipe: {different}")


def _kind(dtype: np.dtype) -> str:
    """The type, whether of 32 or 64 bits."""
    return dtype.kind if dtype.itemsize in (4, 8) else str(dtype)


def _name(key: str) -> str:
    """The name that an array has here, from the one that it is stored under."""
    words = WORDS.fullmatch(key)
    return current_name(words[1] if words else key)


def _compare(step: Path, item: str, found: Mapping[str, str]) -> None:
    expected = item_json(step, "digests").get(item, {})
    if not isinstance(expected, dict):
        raise Damaged(f"its digests of {item} are not laid out as they were written")
    if different := sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)):
        raise Damaged(f"its {item} does not have the checksums noted when it was saved: {', '.join(different[:3])}")


def _like(key: str, array: jax.Array, like: Any) -> jax.Array:
    """The array with the type of `like`: converted on the host, where all types are known, part by part."""
    words = WORDS.fullmatch(key)
    if not words and array.dtype == like.dtype:
        return array

    def convert(part: jax.Array) -> np.ndarray:
        values = np.asarray(part)
        values = values.view(words[2])[..., 0] if words else values
        with np.errstate(over="ignore"):
            converted = values.astype(like.dtype)
        if values.dtype.kind in "iu" and (converted != values).any():
            raise UserError(f"{key} holds numbers that need 64 bits: set JAX_ENABLE_X64=1")
        return converted

    parts = [jax.device_put(convert(shard.data), shard.device) for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, parts)


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
    try:
        return _load(step, device or jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    except Damaged as error:
        hint = f"; try {others[0]}" if others else ""
        raise UserError(f"the checkpoint {step} {error.says}: {error}{hint}") from error


def _load(step: Path, device: Sharding) -> Loaded:
    check_files(step)
    recipe, number = read_recipe(step), _held_step(step)
    abstract = recipe.abstract_model()
    like = {w.name: jax.ShapeDtypeStruct(w.array.shape, w.array.dtype, sharding=device) for w in weights(abstract)}
    arrays = read_arrays(step, "model", like)
    if step_number(step) not in (None, number):
        print(f"warning: {step} holds step {number}", file=sys.stderr)
    return Loaded(with_arrays(abstract, arrays), recipe, step, number, digest(arrays))


def _held_step(step: Path) -> int:
    """The step that a checkpoint holds, whatever its folder is called. Format 1 tells it by the folder alone."""
    number = read_about(step).get("step", step_number(step))
    if number is None:
        raise UserError(f"the checkpoint {step} does not say its step: call its folder by its step")
    return number


def weight_arrays(model: AbstractModule) -> Arrays:
    """The arrays of all weights, by name."""
    return {weight.name: weight.array for weight in weights(model)}


def with_arrays(model: AbstractModule, arrays: Arrays) -> AbstractModule:
    """`model` with the arrays of `weight_arrays`."""
    return map_weights(lambda weight: weight.with_array(arrays[weight.name]), model)
