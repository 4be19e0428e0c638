"""Arrays of checkpoints: which of a state are stored, under which names, and how they are read and compared."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lipzoo.models import AbstractModule
from lipzoo.recipe.format1 import current_name
from lipzoo.system.errors import UserError
from lipzoo.system.files import plain
from lipzoo.system.version import VERSION
from lipzoo.theory.weight import map_weights, weights
from lipzoo.train.digests import Arrays, checksums, host_checksum
from lipzoo.train.reading import Damaged, item_json, read_about, reading

WORDS = re.compile(r"(.*):(int64|uint64|float64)", re.DOTALL)
"""The name of an array of 64 bits, which is stored as pairs of 32-bit words."""
RETIRED = re.compile(r"[^.]*(?:\.inner_states\[\w+\]\.inner_state)?\.(?:updates|step|target)")
"""What the states of optimizers and trust region held before all read one clock: read, compared, and left."""
CLOCK = "[1]"
"""The name of the number of steps, which lies whole on every device."""
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def read_arrays(step: Path, item: str, like: Arrays) -> Arrays:
    """An item's arrays, with the shapes, types and devices of `like`. Raises Damaged if they are not what was saved.

    An array of 64 bits and one of 32 stand for each other, so that it does not matter whether JAX_ENABLE_X64 was set.
    """
    sharding = {name: x.sharding for name, x in like.items()}

    def abstract(key: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding[CLOCK if RETIRED.fullmatch(key) else _name(key)])

    arrays = _read(step, item, shapes_of(like), abstract)
    _compare(step, item, checksums(arrays))
    with reading(step, item):
        kept = {key: array for key, array in arrays.items() if not RETIRED.fullmatch(key)}
        found = {_name(key): _like(key, array, like[_name(key)]) for key, array in kept.items()}
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
        if RETIRED.fullmatch(key):
            continue
        words = WORDS.fullmatch(key)
        found[_name(key)] = (shape[:-1], _kind(np.dtype(words[2]))) if words else (shape, _kind(dtype))
    if wanted == found:
        return
    different = ", ".join(sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))[:3])
    if wanted.keys() != found.keys() and set(item_json(step, "digests").get(item) or {}) == set(stored):
        raise UserError(
            f"the {item} of the checkpoint {step}, written by lipzoo {read_about(step)['lipzoo']}, is not laid out as "
            f"lipzoo {VERSION} would: use the version that wrote it ({different})"
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


def shapes_of(arrays: Mapping[str, Any]) -> Shapes:
    """Shapes and types by name."""
    return {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in arrays.items()}


def weight_arrays(model: AbstractModule) -> Arrays:
    """The arrays of all weights, by name."""
    return {weight.name: weight.array for weight in weights(model)}


def with_arrays(model: AbstractModule, arrays: Arrays) -> AbstractModule:
    """`model` with the arrays of `weight_arrays`."""
    return map_weights(lambda weight: weight.with_array(arrays[weight.name]), model)
