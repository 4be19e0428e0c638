"""Formats of numbers in which networks and constraints compute, those among them that no device multiplies."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from lipzoo.theory import norms, products

Precision = Literal["float32", "bfloat16", "float8_e4m3fn", "float64"]
FLOAT8 = "float8_e4m3fn"
FLOAT8_SCALE = 16.0
"""What brings a largest entry in [1, 2) to [16, 32), and the largest of all, below 16, under float8's largest, 448."""


def computing(dtype: str) -> DTypeLike:
    """The format in which numbers of a format are multiplied and added: bfloat16 for float8, else their own."""
    return jnp.dtype("bfloat16" if dtype == FLOAT8 else dtype)


def rounded(matrix: Float[Array, "*batch m n"], dtype: str) -> Float[Array, "*batch m n"]:
    """`matrix` rounded to a format, in the one that computes.

    For float8_e4m3fn (3 bits of mantissa, numbers from 2⁻⁹ to 448) each matrix is scaled by a power of two so that its
    largest entry lies in [16, 32), rounded, and scaled back; bfloat16 holds the result exactly.
    """
    if dtype == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError('float64 needs jax.config.update("jax_enable_x64", True) before anything is computed')
    if dtype != FLOAT8:
        return matrix.astype(computing(dtype))
    x, unit, _ = norms.scaled(matrix.astype(products.at_least_float32(matrix.dtype)))
    nearest = (x * FLOAT8_SCALE).astype(FLOAT8).astype(x.dtype)
    return (nearest / FLOAT8_SCALE * unit[..., None, None]).astype(computing(dtype))


def enable(*dtypes: str) -> None:
    """Makes jax take float64 for what it is from here on, if one of the formats is that (else it takes float32)."""
    if "float64" in dtypes:
        jax.config.update("jax_enable_x64", True)
