"""Where a layer stands in a network, what comes in there, and what is said of what is not known."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.compose import Sequential
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Vector
from lipzoo.theory.weight import cap_norm

KNOWN = (
    "Linear, Conv2d, AvgPool2d, MaxPool2d, LayerNorm, RMSNorm, Dropout and BatchNorm of PyTorch in inference, "
    "flattening, relu, gelu, tanh, identity, and sequences of these"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """The name of a layer, and the shape of what comes in: (height, width, channels), (size,), or None: not known."""

    name: str = ""
    shape: tuple[int, ...] | None = None

    def inner(self, part: object) -> "Place":
        """The place of a part, which is named after both."""
        return dataclasses.replace(self, name=f"{self.name}.{part}" if self.name else str(part))

    def after(self, layers: Iterable[AbstractModule]) -> "Place":
        """The same name, after these layers. Raises SpaceError if they do not take what comes in."""
        if self.shape is None:
            return self
        space = Sequential(layers).bound(Bound.start(Vector(self.shape)), cap_norm).space
        return dataclasses.replace(self, shape=space.shape)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def sees_image(self) -> bool:
        """Whether what comes in is an image."""
        return self.shape is not None and len(self.shape) == 3

    def image(self, kind: str) -> tuple[int, int, int]:
        """(height, width, channels) of what comes in. Raises ValueError unless that is an image, as this kind needs."""
        if self.shape is None:
            call = "from_layers(network, image=(channels, height, width))"
            raise ValueError(f"{self} is a {kind}, which needs the shape of images: write {call}")
        if not self.sees_image:
            raise ValueError(f"{self} is a {kind}, but a vector of {self.shape[0]} entries comes in")
        return self.shape  # pyright: ignore[reportReturnType]

    def check_vector(self, kind: str) -> None:
        """Raises ValueError if an image comes in, whose last axis is not that of a layer of this kind."""
        if self.sees_image:
            raise ValueError(f"{self} is a {kind}, but an image comes in: flatten it before")

    def __str__(self) -> str:
        return f"layer {self.name}" if self.name else "the network"


def unknown(layer: Any, place: Place) -> ValueError:
    """The error that names a layer, or a function, and its place."""
    kind = getattr(layer, "__qualname__", None) or type(layer).__qualname__
    where = f" ({place})" if place.name else ""
    return ValueError(f"from_layers does not know {kind}{where}: it takes {KNOWN}")
