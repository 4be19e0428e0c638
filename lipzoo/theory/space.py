"""What kind of object an activation is, and so how it is measured.

A bound speaks of norms, and a norm belongs to a space: a bound that does not know its space can be true of one network
and be read as a statement about another. So a [`Bound`][] carries the space of what it bounds and that of the input,
and every module checks that what comes in is what it takes.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Vector:
    """One vector, in whatever shape its entries stand; measured by the RMS over all of them.

    `Vector((64,))` is a vector of 64 entries, `Vector((3, 32, 32))` an image.
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many entries there are."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"one vector of {'×'.join(map(str, self.shape))} entries"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A sequence, of any length, of tokens of `size` entries; measured by the RMS of its largest token."""

    size: int

    def __str__(self) -> str:
        return f"a sequence of tokens of {self.size} entries"


@dataclasses.dataclass(frozen=True)
class Symbols:
    """A sequence of whole numbers below `count`. It has no norm: bounds begin where these are embedded."""

    count: int

    def __str__(self) -> str:
        return f"a sequence of whole numbers below {self.count}"


Space = Vector | Tokens | Symbols


class SpaceError(ValueError):
    """A module was given something else than what it takes."""


def entries(space: Space) -> int:
    """How many entries stand in the last axis of an object that has a norm."""
    return space.size if isinstance(space, Tokens) else example_shape(space)[-1]


def example_shape(space: Space, length: int = 3) -> tuple[int, ...]:
    """The shape of one example, of so many tokens if it is a sequence."""
    match space:
        case Vector(shape):
            return shape
        case Tokens(size):
            return (length, size)
        case Symbols():
            return (length,)
