"""Softmax attention of heads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lipzoo.layers.base import Position
from lipzoo.layers.product import product
from lipzoo.theory.products import at_least_float32

FLASH_SIZE = 128
"""Largest width of a head that cuDNN's flash attention takes."""
BLOCK = 128
"""Queries at once, at least, where each block looks at no keys after it."""
MOST_BLOCKS = 8
"""Each block is compiled by itself; half of the scores, plus one part in so many, are computed."""
HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The logit of a key that is not looked at: its weight is 0."""


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
    causal: bool = True,
) -> Float[Array, "queries heads size"]:
    """softmax(scale·qkᵀ + b)v, where query i, at position p = `first` + i, looks at keys 0, …, p, or at all of them if
    it is not `causal`, which goes with no window and no documents.

    It looks at the last `window` of these alone, unless that is 0, and only at those of its own document. b depends on
    the distance alone; distances beyond its reach share its last entry. cuDNN's flash attention runs where it can: in
    bfloat16 on a GPU, for heads of up to 128, without b; elsewhere it is one block of queries after the other, with a
    softmax in float32 at least.
    """
    whole = isinstance(first, int) and first == 0 and len(q) == len(k)
    if whole and bias is None and _flashes(q):
        return _flash(q, k, v, scale, window, documents, causal)
    q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))
    size = max(BLOCK, -(-len(q[0]) // MOST_BLOCKS)) if whole and causal else len(q[0])
    blocks, wide = [], at_least_float32(q.dtype)
    for start in range(0, len(q[0]), size):
        asking = q[:, start : start + size]
        seen = start + len(asking[0]) if whole else len(k[0])
        distance = _distance(first + start, len(asking[0]), seen)
        visible = _visible(distance, window) if causal else jnp.ones_like(distance, bool)
        if documents is not None and whole:
            visible &= documents[start:seen, None] == documents[None, :seen]
        logits = product(asking, k[:, :seen], 1, wide) * scale
        if bias is not None:
            logits += bias.astype(wide)[:, jnp.clip(jnp.abs(distance), 0, bias.shape[1] - 1)]
        weights = jax.nn.softmax(jnp.where(visible, logits, HIDDEN), axis=-1).astype(v.dtype)
        blocks.append(weights @ v[:, :seen])
    return jnp.concatenate(blocks, axis=1).swapaxes(0, 1)


def _flash(
    q: Float[Array, "time heads size"],
    k: Float[Array, "time heads size"],
    v: Float[Array, "time heads size"],
    scale: float,
    window: int,
    documents: Int[Array, " time"] | None,
    causal: bool,
) -> Float[Array, "time heads size"]:
    """By cuDNN, which takes a mask under vmap for every head alone, and beside a mask no window before version 9.10."""
    mask = None
    if documents is not None:
        together = _visible(_distance(0, len(q), len(q)), window) & (documents[:, None] == documents[None, :])
        mask, window = jnp.broadcast_to(together, (q.shape[1], *together.shape)), 0
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        scale=scale,
        is_causal=causal,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )


def _flashes(q: Float[Array, "queries heads size"]) -> bool:
    return jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16 and q.shape[-1] <= FLASH_SIZE


def _distance(first: Position, queries: int, keys: int) -> Int[Array, "queries keys"]:
    """How far back each key is from each query."""
    return (first + jnp.arange(queries, dtype=jnp.int32))[:, None] - jnp.arange(keys, dtype=jnp.int32)[None, :]


def _visible(distance: Int[Array, "queries keys"], window: int) -> Bool[Array, "queries keys"]:
    return (distance >= 0) & (distance < window) if window else distance >= 0
