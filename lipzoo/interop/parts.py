"""Layers of other libraries as layers of this one, from their arrays: what both kinds of networks have in common."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipzoo.interop.place import Place
from lipzoo.layers.base import AbstractModule, check_axes
from lipzoo.layers.compose import Sequential
from lipzoo.layers.linear import Affine, Linear
from lipzoo.layers.normalization import RMSNorm, layer_norm
from lipzoo.theory.geometry import COLUMN, ENTRIES
from lipzoo.theory.weight import Weight


def linear(matrix: Any, bias: Any, place: Place) -> Linear:
    """x ↦ Wx + b."""
    place.check_vector("Linear")
    weight = Weight(array_of(matrix, place.name), place.name)
    check_axes(weight, "a matrix")
    return Linear(weight, None if bias is None else column(bias, place.name))


def normalization(kind: str, shape: Any, epsilon: float, gain: Any, bias: Any, place: Place) -> AbstractModule:
    """LayerNorm or RMSNorm of vectors, γ ⊙ x̂ + β. Raises ValueError if its mean is over more than one axis."""
    if len(shape) != 1:
        raise ValueError(f"{place} is a {kind} over the shape {tuple(shape)}: from_layers takes it over one axis")
    place.check_vector(kind)
    normed = layer_norm(epsilon) if kind == "LayerNorm" else RMSNorm(epsilon)
    if gain is None and bias is None:
        return normed
    name, ones = place.name, np.ones(shape, np.float32) if gain is None else gain
    gains = Weight(array_of(ones, f"{name}.gain").reshape(-1, 1, 1), f"{name}.gain", ENTRIES)
    return Sequential([normed, Affine(gains, None if bias is None else column(bias, name))])


def column(bias: Any, name: str) -> Weight:
    """The bias of a layer of this name."""
    return Weight(array_of(bias, f"{name}.bias").reshape(-1, 1), f"{name}.bias", COLUMN)


def array_of(values: Any, name: str) -> jax.Array:
    """The same numbers in the same type: a certificate is about these, so nothing is rounded on the way."""
    values = np.asarray(values)
    wide = values.dtype == np.float64 and jax.config.read("jax_enable_x64")
    if values.dtype != np.float32 and not wide:
        raise ValueError(f"{name} holds {values.dtype}: turn the network into float32 first, which may change it")
    if not math.prod(values.shape):
        raise ValueError(f"{name} has the shape {values.shape}: a matrix without entries has no norm")
    return jnp.asarray(values)
