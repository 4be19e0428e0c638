"""Rotary embedding of positions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.layers.base import Position

ROTARY_BASE = 10_000.0


def rotate(x: Float[Array, "time heads size"], first: Position = 0, room: int = 0) -> Float[Array, "time heads size"]:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    Turns the pair (xᵢ, xᵢ₊ₛ), s = size/2, of the token at position t by the angle t·10000^(-i/s): a rotation of every
    head's space, which changes no norm and no bound. `first` is the position of the first token; all are below `room`,
    by default (0) the length of x. Cosines and sines are constants, computed in float64.
    """
    time, _, size = x.shape
    half = size // 2
    angle = np.outer(np.arange(room or time), ROTARY_BASE ** (-np.arange(half) / half))
    table = jnp.asarray(np.stack([np.cos(angle), np.sin(angle), -np.sin(angle)], axis=1), x.dtype)
    cos, sin, minus = jnp.split(jax.lax.dynamic_slice_in_dim(table, first, time)[:, None], 3, axis=2)
    pairs = x.reshape(time, -1, 2, half)
    # Both halves at once, so that the gradient is of the same form.
    return (pairs * cos + pairs[..., ::-1, :] * jnp.concatenate([sin, minus], axis=2)).reshape(x.shape)
