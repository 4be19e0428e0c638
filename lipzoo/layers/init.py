"""First weights."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.theory import norms
from lipzoo.theory.convolution import Convolution
from lipzoo.theory.weight import Place, Weight

Init = Literal["zero", "orthogonal", "spectral"]
BELOW_CAP = 1 - 1e-5
"""Rounding must not lift a fresh matrix above its cap."""


def check_cap(cap: float) -> None:
    """Raises ValueError unless a cap is positive; it may be infinite."""
    if not cap > 0:
        raise ValueError(f"a cap must be positive, got {cap}")


def semi_orthogonal(key: PRNGKeyArray, out_size: int, in_size: int, norm: float) -> Float[Array, "out in"]:
    """A random matrix whose singular values are all equal and whose RMS→RMS norm is `norm`."""
    draw = jax.nn.initializers.orthogonal(scale=norm * math.sqrt(out_size / in_size))
    return draw(key, (out_size, in_size), jnp.float32)


def spectral(key: PRNGKeyArray, out_size: int, in_size: int) -> Float[Array, "out in"]:
    """Xavier's Gaussian matrix divided by (an upper bound of) its largest singular value (Qi et al. 2023)."""
    matrix = jax.random.normal(key, (out_size, in_size), jnp.float32)
    return matrix / norms.gram_norm(matrix)


def fresh(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    *,
    name: str,
    place: Place = "hidden",
    cap: float,
    share: float,
    init: Init,
) -> Weight:
    """A weight of this shape, (..., out, in), that is under its cap.

    - `zero`: all zero.
    - `orthogonal`: every matrix semi-orthogonal, of RMS→RMS norm min(1, cap).
    - `spectral`: every matrix Gaussian with σ₁ = 1, or less if the cap asks for it.
    """
    out_size, in_size = shape[-2:]
    keys = jax.random.split(key, math.prod(shape[:-2]))
    norm = min(1.0, cap) * BELOW_CAP
    if init == "zero":
        array = jnp.zeros(shape, jnp.float32)
    elif init == "orthogonal":
        array = jax.vmap(lambda key: semi_orthogonal(key, out_size, in_size, norm))(keys)
    else:
        largest = min(1.0, cap / norms.rms_factor(out_size, in_size)) * BELOW_CAP
        array = largest * jax.vmap(lambda key: spectral(key, out_size, in_size))(keys)
    return Weight(array.reshape(shape), name, cap=cap, share=share, place=place)


def fresh_kernel(
    key: PRNGKeyArray, shape: tuple[int, ...], geometry: Convolution, *, name: str, cap: float, share: float
) -> Weight:
    """Kernels of this shape, (..., out, in/groups·k²), of norm min(1, cap): semi-orthogonal matrices, divided by an
    upper bound of their norms as convolutions."""
    weight = dataclasses.replace(
        fresh(key, shape, name=name, cap=math.inf, share=share, init="orthogonal"), geometry=geometry, cap=cap
    )
    norm = geometry.gram_norm(weight.array)[..., None, None]
    return weight.with_array(weight.array * (min(1.0, cap) * BELOW_CAP / norm))
