"""Plain feed-forward networks of Equinox and PyTorch as models of this library, to be certified."""

from collections.abc import Sequence
from typing import Any

from lipzoo.interop.images import folded
from lipzoo.interop.of_equinox import joined, of_equinox
from lipzoo.interop.of_torch import of_torch
from lipzoo.interop.place import Place, unknown
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import Sequential
from lipzoo.layers.image import ChannelsFirst, ChannelsLast
from lipzoo.theory.weight import check_names


def from_layers(network: Any, *, image: Sequence[int] | None = None) -> Sequential:
    """The network as a model of this library, whose outputs are the same but for rounding.

    `network` is an `eqx.nn.MLP` or `eqx.nn.Sequential`, a `torch.nn.Sequential`, or a list of layers and functions of
    either. Weights are copied as they are, named after their places, and free of caps; but PyTorch's BatchNorm2d
    becomes part of the convolution before it, which rounds. Inputs are single examples, as
    Equinox has them; of PyTorch's batches, one row.

    `image` is the shape (channels, height, width) of inputs, which networks with convolutions need. The model takes
    images of that shape, or flat ones, and holds them with channels last; what it flattens, and what it returns, has
    channels first, as the network has.

    !!! example

        ```python
        net = eqx.nn.MLP(64, 10, 32, 2, key=jax.random.key(0))
        lipzoo.Certificate.of(lipzoo.from_layers(net))
        ```

    **Raises:** ValueError, naming the layer, if one is not known, was built in a way that is not, or does not take what
    comes in.
    """
    start = Place("", None if image is None else _last(image))
    layers = joined(network, start, _any) if isinstance(network, (list, tuple)) else _any(network, start)
    if layers is None:
        raise unknown(network, start)
    if not layers:
        raise ValueError("from_layers was given a network without layers")
    if image is not None:
        end = [ChannelsFirst()] if start.after(layers).sees_image else []
        layers = [ChannelsLast(*image), *folded(layers), *end]
    model = Sequential(layers)
    check_names(model)
    return model


def _any(layer: Any, place: Place) -> list[AbstractModule] | None:
    found = of_equinox(layer, place)
    return of_torch(layer, place) if found is None else found


def _last(image: Sequence[int]) -> tuple[int, ...]:
    """The shape with channels last. Raises ValueError unless it is one of images."""
    if len(image) != 3 or min(image) < 1:
        raise ValueError(f"image must be (channels, height, width), three positive whole numbers, got {image}")
    return (*image[1:], image[0])
