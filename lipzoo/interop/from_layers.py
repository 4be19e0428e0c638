"""Plain feed-forward networks of Equinox and PyTorch as models of this library, to be certified."""

from typing import Any

from lipzoo.interop.of_equinox import joined, of_equinox
from lipzoo.interop.of_torch import of_torch
from lipzoo.interop.unknown import unknown
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import Sequential
from lipzoo.theory.weight import check_names


def from_layers(network: Any) -> Sequential:
    """The network as a model of this library, whose outputs are the same but for rounding.

    `network` is an `eqx.nn.MLP` or `eqx.nn.Sequential`, a `torch.nn.Sequential`, or a list of layers and functions of
    either. Weights are copied as they are, named after their places, and free of caps. Inputs are single examples, as
    Equinox has them; of PyTorch's batches, one row.

    !!! example

        ```python
        net = eqx.nn.MLP(64, 10, 32, 2, key=jax.random.key(0))
        lipzoo.Certificate.of(lipzoo.from_layers(net))
        ```

    **Raises:** ValueError, naming the layer, if one is not known, or was built in a way that is not.
    """
    layers = joined(network, "", _any) if isinstance(network, (list, tuple)) else _any(network, "")
    if layers is None:
        raise unknown(network, "")
    if not layers:
        raise ValueError("from_layers was given a network without layers")
    model = Sequential(layers)
    check_names(model)
    return model


def _any(layer: Any, name: str) -> list[AbstractModule] | None:
    found = of_equinox(layer, name)
    return of_torch(layer, name) if found is None else found
