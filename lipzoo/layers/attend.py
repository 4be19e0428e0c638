"""Softmax attention of heads, and the rotary embedding of positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lipzoo.layers.base import Position

ROTARY_BASE = 10_000.0
FLASH_SIZE = 128
"""Largest width of a head that cuDNN's flash attention takes."""


def rotate(x: Float[Array, "*batch time heads size"], first: Position = 0) -> Float[Array, "*batch time heads size"]:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    Turns the pair (xᵢ, xᵢ₊ₛ), s = size/2, of the token at position t by the angle t·10000^(-i/s): a rotation of every
    head's space, which changes no norm and no bound. `first` is the position of the first token.
    """
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.outer((first + jnp.arange(x.shape[-3], dtype=jnp.int32)).astype(jnp.float32), frequency)
    shape = (*(1,) * (x.ndim - 3), angle.shape[0], 1, half)
    cos, sin = jnp.cos(angle).astype(x.dtype).reshape(shape), jnp.sin(angle).astype(x.dtype).reshape(shape)
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([cos * left + sin * right, cos * right - sin * left], axis=-1)


def attend(
    q: Float[Array, "queries heads size"],
    k: Float[Array, "keys heads size"],
    v: Float[Array, "keys heads size"],
    *,
    scale: float,
    first: Position,
    window: int,
    documents: Int[Array, " keys"] | None,
    bias: Float[Array, "heads reach"] | None,
) -> Float[Array, "queries heads size"]:
    """softmax(scale·qkᵀ + b)v, where query i, at position p = `first` + i, looks at keys 0, …, p.

    It looks at the last `window` of these alone, unless that is 0, and only at those of its own document. b depends on
    the distance alone; distances beyond its reach share its last entry. cuDNN's flash attention runs where it can: in
    bfloat16 on a GPU, for heads of up to 128, without b; elsewhere the softmax is in float32.
    """
    distance = (first + jnp.arange(q.shape[0], dtype=jnp.int32))[:, None] - jnp.arange(k.shape[0], dtype=jnp.int32)[
        None, :
    ]
    if bias is not None:
        bias = bias.astype(jnp.float32)[:, jnp.clip(distance, 0, bias.shape[1] - 1)]
    whole = isinstance(first, int) and first == 0 and len(q) == len(k)
    flash = jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16 and q.shape[-1] <= FLASH_SIZE and bias is None
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        _together(documents) if whole else _recent(distance, window),
        scale=scale,
        is_causal=whole,
        local_window_size=(window - 1, 0) if whole and window else None,
        implementation="cudnn" if flash and whole else "xla",
    )


def _together(documents: Int[Array, " time"] | None) -> Bool[Array, "1 time time"] | None:
    return None if documents is None else (documents[:, None] == documents[None, :])[None]


def _recent(distance: Int[Array, "queries keys"], window: int) -> Bool[Array, "1 queries keys"]:
    return ((distance >= 0) & (distance < (window or distance.shape[1])))[None]
