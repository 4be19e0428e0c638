"""Checksums of arrays where they lie, and digests of what is stored."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

Arrays = dict[str, Any]
FACTORS = (0x9E3779B1, 0x85EBCA77)
CHUNK = 1 << 20
"""Entries that are summed at once on the host."""


def checksums(arrays: Arrays) -> dict[str, str]:
    """A checksum of every array, computed where it lies, the same on any number of devices and processes.

    Σ bitsᵢ·(2h(i) + 1) mod 2³² over all entries i, for two hashes h. The factors are odd, so a change of one entry
    always shows; other damage goes unnoticed with a probability of about 2⁻⁶⁴.
    """
    return {name: f"{int(a):08x}{int(b):08x}" for name, (a, b) in jax.device_get(_sums(arrays)).items()}


@jax.jit
def _sums(arrays: Arrays) -> Arrays:
    return jax.tree.map(lambda x: tuple(_weighted_sum(x, factor) for factor in FACTORS), arrays)


def _weighted_sum(x: Array, factor: int) -> UInt32[Array, ""]:
    kinds = {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    bits = jax.lax.bitcast_convert_type(x, kinds[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * _odd(index, jnp.uint32(factor)), dtype=jnp.uint32)


def _odd(index: Any, factor: Any) -> Any:
    """2h(i) + 1."""
    mixed = (index + 1) * factor
    mixed = (mixed ^ (mixed >> 15)) * factor
    return (mixed ^ (mixed >> 13)) << 1 | 1


def host_checksum(array: np.ndarray) -> str:
    """The checksum of an array in memory, without a device."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = flat.view({4: np.uint32, 2: np.uint16, 1: np.uint8}[flat.dtype.itemsize])
    sums = np.zeros(2, np.uint32)
    for start in range(0, bits.size, CHUNK):
        part = bits[start : start + CHUNK].astype(np.uint32)
        index = np.arange(start, start + part.size).astype(np.uint32)
        sums += [np.sum(part * _odd(index, np.uint32(factor)), dtype=np.uint32) for factor in FACTORS]
    return "".join(f"{int(value):08x}" for value in sums)


def digest(arrays: Arrays) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def json_digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
