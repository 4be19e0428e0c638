"""Weights stored in fewer bits: codes, and one scale for each row of a matrix.

A row w of a weight is stored as round(w/s), with a float32 scale s, and read as s times that, rounded to float32: the
weights that a loaded model has, that run, and that certificates and comparisons speak of. Biases, gains and what else
would save nothing stays as it is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float

from lipzoo.models import AbstractModule
from lipzoo.theory.weight import Weight, weights
from lipzoo.train.digests import Arrays
from lipzoo.train.reading import Damaged

SCALE = ":scale"
"""What the name of a row's scales ends with, after that of its weight."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """How weights are stored: as what, up to which code (None: without scales, entry by entry)."""

    dtype: Any
    largest: float | None = None

    def encode(self, matrix: Float[np.ndarray, "..."], scale: Float[np.ndarray, "..."]) -> np.ndarray:
        """The nearest codes of entries divided by a scale."""
        units = np.asarray(matrix, np.float64) / scale
        if self.largest is None:
            return units.astype(self.dtype)
        units = np.clip(units, -self.largest, self.largest)
        return (np.rint(units) if np.issubdtype(self.dtype, np.integer) else units).astype(self.dtype)


PACKINGS: Mapping[str, Packing] = {
    "int8": Packing(np.int8, 127.0),
    "float8_e4m3": Packing(jnp.float8_e4m3fn, 448.0),
    "bfloat16": Packing(jnp.bfloat16),
}
"""The formats, by name. float8_e4m3 is the one without infinities."""


def decode(codes: np.ndarray, scale: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """What codes stand for, in float32."""
    return codes.astype(np.float32) * np.asarray(scale, np.float32)


def row_axis(weight: Weight) -> int | None:
    """The axis along which the entries of one row lie; None for a weight that is not packed."""
    axis = weight.geometry.row_axis
    return None if axis is None or weight.array.shape[axis] == 1 else axis


def scale_shape(weight: Weight, axis: int) -> tuple[int, ...]:
    """The shape of a weight's scales."""
    shape = list(weight.array.shape)
    shape[axis] = 1
    return tuple(shape)


def packed_like(model: AbstractModule, packing: Packing, device: Sharding) -> Arrays:
    """The shapes and types of what is stored of a model."""

    def like(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    arrays: Arrays = {}
    for weight in weights(model):
        axis = row_axis(weight)
        arrays[weight.name] = like(weight.array.shape, weight.array.dtype if axis is None else packing.dtype)
        if axis is not None and packing.largest is not None:
            arrays[weight.name + SCALE] = like(scale_shape(weight, axis), jnp.float32)
    return arrays


def unpacked(model: AbstractModule, arrays: Arrays, device: Sharding) -> Arrays:
    """The arrays of a model's weights from what is stored of them. Raises Damaged if a scale is none."""
    found: Arrays = {}
    for weight in weights(model):
        array = arrays[weight.name]
        if row_axis(weight) is not None:
            scale = np.asarray(arrays.get(weight.name + SCALE, 1.0))
            if not (np.isfinite(scale) & (scale > 0)).all():
                raise Damaged(f"the scales of {weight.name} must be positive and finite")
            array = jax.device_put(decode(np.asarray(array), scale).astype(weight.array.dtype), device)
        found[weight.name] = array
    return found
