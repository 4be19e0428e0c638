"""Layers of Equinox, and functions of JAX, as layers of this library."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from lipzoo.interop import images, parts
from lipzoo.interop.place import Place, unknown
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


def of_equinox(layer: Any, place: Place) -> list[AbstractModule] | None:
    """The layers of this library that compute what one of Equinox, or a function, does; None if it is neither.

    A subclass may compute anything, so types are compared, not asked for instances.
    """
    if isinstance(layer, eqx.Module):
        kinds = {
            eqx.nn.Linear: _linear,
            eqx.nn.Conv2d: _convolution,
            eqx.nn.AvgPool2d: _pool,
            eqx.nn.MaxPool2d: _pool,
            eqx.nn.Sequential: lambda layer, place: joined(layer.layers, place, of_equinox),
            eqx.nn.MLP: _mlp,
            eqx.nn.Lambda: lambda layer, place: function(layer.fn, place),
            eqx.nn.LayerNorm: _norm,
            eqx.nn.RMSNorm: _norm,
            eqx.nn.Identity: lambda layer, place: [Identity()],
            eqx.nn.Dropout: _dropout,
        }
        if type(layer) not in kinds:
            raise unknown(layer, place)
        return kinds[type(layer)](layer, place)
    plain = callable(layer) and (inspect.isroutine(layer) or isinstance(layer, functools.partial))
    return function(layer, place) if plain or _known(layer) else None


def function(value: Any, place: Place) -> list[AbstractModule]:
    """A function of entries, or one that flattens. Raises ValueError, naming it, if it is not known."""
    if (found := _known(value)) is None:
        raise unknown(value, place)
    return images.flatten(place) if isinstance(found, Flatten) else [found]


def _known(value: Any) -> AbstractModule | None:
    options = {}
    if isinstance(value, functools.partial) and not value.args:
        value, options = value.func, value.keywords
    if value is jax.nn.gelu and set(options) <= {"approximate"}:
        return GELU(1.0, exact=not options.get("approximate", True))
    found = next((make for known, make in FUNCTIONS if value is known), None)
    return None if found is None or options else found()


def _linear(layer: eqx.nn.Linear, place: Place) -> list[AbstractModule]:
    if "scalar" in (layer.in_features, layer.out_features):
        raise ValueError(f"{place} is a Linear of scalars: build it with 1 in the place of 'scalar'")
    return [parts.linear(layer.weight, layer.bias, place)]


def _convolution(layer: eqx.nn.Conv2d, place: Place) -> list[AbstractModule]:
    sides, pads = place.image("Conv2d")[:2], layer.padding
    if isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(sides, layer.kernel_size, layer.stride, pads)
    options = images.Options(layer.stride, layer.dilation, layer.groups, tuple(pads), layer.padding_mode)  # pyright: ignore[reportArgumentType]
    return images.convolution(layer.weight, layer.bias, options, place)


def _pool(layer: Any, place: Place) -> list[AbstractModule]:
    kind = type(layer).__name__
    return images.pool(kind, layer.kernel_size, layer.stride, layer.padding, layer.use_ceil, place)


def joined(layers: Iterable[Any], place: Place, convert: Callable[[Any, Place], list[AbstractModule] | None]) -> Any:
    """The layers of a sequence, each named after its place."""
    found: list[AbstractModule] = []
    for index, layer in enumerate(layers):
        inner = place.inner(index)
        converted = convert(layer, inner)
        if converted is None:
            raise unknown(layer, inner)
        place = place.after(converted)
        found += converted
    return found


def _mlp(layer: eqx.nn.MLP, place: Place) -> list[AbstractModule]:
    """Its functions act on single entries, where those that are known are the same."""
    if layer.scan:
        raise ValueError(f"{place} is an MLP with scan=True: build it without")
    if not layer.depth and not isinstance(_known(layer.final_activation), Identity):  # Versions of Equinox differ.
        raise ValueError(f"{place} is an MLP of depth 0 with a final activation: give its one Linear, and the function")
    place.check_vector("MLP")
    found = []
    for index, part in enumerate(layer.layers):
        if type(part) is not eqx.nn.Linear:  # Others may compute something else.
            raise unknown(part, place.inner(f"layers.{index}"))
        last = index == layer.depth
        found += _linear(part, place.inner(f"layers.{index}"))
        found += function(layer.final_activation if last else layer.activation, place.inner("activation"))
    return found


def _norm(layer: Any, place: Place) -> list[AbstractModule]:
    kind = type(layer).__name__
    gain, bias = layer.weight if layer.use_weight else None, layer.bias if layer.use_bias else None
    return [parts.normalization(kind, layer.shape, float(layer.eps), gain, bias, place)]


def _dropout(layer: eqx.nn.Dropout, place: Place) -> list[AbstractModule]:
    if layer.p and not layer.inference:
        raise ValueError(f"{place} is a Dropout that drops: give eqx.nn.inference_mode(network)")
    return [Identity()]
