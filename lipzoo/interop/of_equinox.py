"""Layers of Equinox, and functions of JAX, as layers of this library."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from lipzoo.interop import parts
from lipzoo.interop.unknown import place, unknown
from lipzoo.layers.activation import GELU, Identity, ReLU, Tanh
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.linear import Flatten

UNCHANGED = inspect.signature(eqx.nn.MLP).parameters["final_activation"].default
"""The identity that an MLP of Equinox ends in, unless it is told otherwise."""
FUNCTIONS: tuple[tuple[Any, Callable[[], AbstractModule]], ...] = (
    (jax.nn.relu, ReLU),
    (jax.nn.tanh, Tanh),
    (jnp.tanh, Tanh),
    (jax.lax.tanh, Tanh),
    (jax.nn.identity, Identity),
    (UNCHANGED, Identity),
    (jnp.ravel, Flatten),
)
"""Functions that have a module without options."""


def of_equinox(layer: Any, name: str) -> list[AbstractModule] | None:
    """The layers of this library that compute what one of Equinox, or a function, does; None if it is neither.

    A subclass may compute anything, so types are compared, not asked for instances.
    """
    if isinstance(layer, eqx.Module):
        kinds = {
            eqx.nn.Linear: _linear,
            eqx.nn.Sequential: _sequential,
            eqx.nn.MLP: _mlp,
            eqx.nn.Lambda: lambda layer, name: [function(layer.fn, name)],
            eqx.nn.LayerNorm: _norm,
            eqx.nn.RMSNorm: _norm,
            eqx.nn.Identity: lambda layer, name: [Identity()],
            eqx.nn.Dropout: _dropout,
        }
        if type(layer) not in kinds:
            raise unknown(layer, name)
        return kinds[type(layer)](layer, name)
    plain = callable(layer) and (inspect.isroutine(layer) or isinstance(layer, functools.partial))
    return [function(layer, name)] if plain or _known(layer) else None


def function(value: Any, name: str) -> AbstractModule:
    """A function of entries. Raises ValueError, naming it, if it is not known."""
    if (found := _known(value)) is not None:
        return found
    raise unknown(value, name)


def _known(value: Any) -> AbstractModule | None:
    options = {}
    if isinstance(value, functools.partial) and not value.args:
        value, options = value.func, value.keywords
    if value is jax.nn.gelu and set(options) <= {"approximate"}:
        return GELU(1.0, exact=not options.get("approximate", True))
    found = next((make for known, make in FUNCTIONS if value is known), None)
    return None if found is None or options else found()


def _linear(layer: eqx.nn.Linear, name: str) -> list[AbstractModule]:
    if "scalar" in (layer.in_features, layer.out_features):
        raise ValueError(f"{place(name)} is a Linear of scalars: build it with 1 in the place of 'scalar'")
    return [parts.linear(layer.weight, layer.bias, name)]


def _sequential(layer: eqx.nn.Sequential, name: str) -> list[AbstractModule]:
    return joined(layer.layers, name, of_equinox)


def joined(layers: Iterable[Any], name: str, convert: Callable[[Any, str], list[AbstractModule] | None]) -> Any:
    """The layers of a sequence, each named after its place."""
    found: list[AbstractModule] = []
    for index, layer in enumerate(layers):
        inner = f"{name}.{index}" if name else str(index)
        converted = convert(layer, inner)
        if converted is None:
            raise unknown(layer, inner)
        found += converted
    return found


def _mlp(layer: eqx.nn.MLP, name: str) -> list[AbstractModule]:
    """Its functions act on single entries, where those that are known are the same."""
    if layer.scan:
        raise ValueError(f"{place(name)} is an MLP with scan=True: build it without")
    prefix, found = f"{name}." if name else "", []
    for index, part in enumerate(layer.layers):
        last = index == layer.depth
        found += _linear(part, f"{prefix}layers.{index}")
        found.append(function(layer.final_activation if last else layer.activation, f"{prefix}activation"))
    return found


def _norm(layer: Any, name: str) -> list[AbstractModule]:
    kind = type(layer).__name__
    gain, bias = layer.weight if layer.use_weight else None, layer.bias if layer.use_bias else None
    return [parts.normalization(kind, layer.shape, float(layer.eps), gain, bias, name)]


def _dropout(layer: eqx.nn.Dropout, name: str) -> list[AbstractModule]:
    if layer.p and not layer.inference:
        raise ValueError(f"{place(name)} is a Dropout that drops: give eqx.nn.inference_mode(network)")
    return [Identity()]
