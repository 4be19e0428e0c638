"""Layers of other libraries as layers of this one, from their arrays: what both kinds of networks have in common."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lipzoo.interop.unknown import place
from lipzoo.layers.base import AbstractModule, check_axes
from lipzoo.layers.compose import Sequential
from lipzoo.layers.linear import Affine, Linear
from lipzoo.layers.normalization import RMSNorm, layer_norm
from lipzoo.theory.geometry import COLUMN, ENTRIES
from lipzoo.theory.weight import Weight


def linear(matrix: Any, bias: Any, name: str) -> Linear:
    """x ↦ Wx + b."""
    weight = Weight(_array(matrix, name), name)
    check_axes(weight, "a matrix")
    return Linear(weight, None if bias is None else _column(bias, name))


def normalization(kind: str, shape: Any, epsilon: float, gain: Any, bias: Any, name: str) -> AbstractModule:
    """LayerNorm or RMSNorm of vectors, γ ⊙ x̂ + β. Raises ValueError if its mean is over more than one axis."""
    if len(shape) != 1:
        raise ValueError(f"{place(name)} is a {kind} over the shape {tuple(shape)}: from_layers takes it over one axis")
    normed = layer_norm(epsilon) if kind == "LayerNorm" else RMSNorm(epsilon)
    if gain is None and bias is None:
        return normed
    ones = np.ones(shape, np.float32) if gain is None else gain
    gains = Weight(_array(ones, f"{name}.gain").reshape(-1, 1, 1), f"{name}.gain", ENTRIES)
    return Sequential([normed, Affine(gains, None if bias is None else _column(bias, name))])


def _column(bias: Any, name: str) -> Weight:
    return Weight(_array(bias, f"{name}.bias").reshape(-1, 1), f"{name}.bias", COLUMN)


def _array(values: Any, name: str) -> jax.Array:
    """The same numbers in the same type: a certificate is about these, so nothing is rounded on the way."""
    values = np.asarray(values)
    wide = values.dtype == np.float64 and jax.config.read("jax_enable_x64")
    if values.dtype != np.float32 and not wide:
        raise ValueError(f"{name} holds {values.dtype}: turn the network into float32 first, which may change it")
    if not math.prod(values.shape):
        raise ValueError(f"{name} has the shape {values.shape}: a matrix without entries has no norm")
    return jnp.asarray(values)
