"""The part of a recipe that describes an MLP."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count, Fraction, NonNegative, Positive, Range
from lipzoo.data.config import Sizes
from lipzoo.layers.reparametrized import ACTIVE
from lipzoo.models.config import AbstractModelConfig

Activation = Literal["relu", "gelu", "tanh", "maxmin", "groupsort", "identity"]
Layer = Literal["plain", "aol", "bjorck", "cayley", "cpl", "sll", "sandwich"]
RESIDUAL: tuple[Layer, ...] = ("cpl", "sll")
ENDS: Mapping[Layer, tuple[Layer, Layer]] = {
    **dict.fromkeys(RESIDUAL, ("aol", "aol")),
    "sandwich": ("sandwich", "cayley"),
}
"""The first and the last matrix, where they are of another kind than those between."""
SLOPES = ("relu", "tanh")
"""Activations with slopes in [0, 1]."""
DEEPEST = 1024


@options
@dataclasses.dataclass(frozen=True)
class MLPConfig(AbstractModelConfig):
    """The part of a recipe that describes an MLP."""

    depth: Annotated[int, Range(1, DEEPEST, why="since every layer is compiled by itself")] = 3
    """Matrices from the pixels to the logits."""
    width: Count = 256
    """Features of every hidden layer."""
    activation: Activation = "relu"
    """Nonlinearity; each is 1-Lipschitz (gelu is divided by 1.129)."""
    bias: bool = False
    """Add a bias to every layer."""
    residual: Fraction = 0.0
    """α of a convex residual (1-α)x + αf(x) around each hidden width × width layer; 0 for none."""
    final_scale: Positive = 1.0
    """Fixed factor on the logits; counts in the bound."""
    zero_init: bool = True
    """Start the last matrix at zero."""
    potential: NonNegative = 0.0
    """c > 0 makes each hidden width × width layer x - (2/c²)Wᵀφ(Wx + b), which does not shrink what comes in, and is
    1-Lipschitz for matrices of norm up to c, as --sigma-max says; 0 for none."""

    layer: Layer = "plain"
    """plain: matrices are what is trained, and held by --constraint; others are computed in every forward pass so that
    the network is 1-Lipschitz by itself (times --final-scale): cpl and sll residual, between a first and a last aol;
    sandwich before a last cayley."""

    @property
    def branch(self) -> float:
        """By how much, at most, a change of a hidden matrix by its norm is multiplied where there is a residual: α, or
        2hc = 4/c."""
        return 4 / self.potential if self.potential else self.residual or 1.0

    def kind_of(self, index: int) -> Layer:
        """Of the matrix at a place."""
        first, last = ENDS.get(self.layer, (self.layer, self.layer))
        return last if index == self.depth - 1 else self.layer if index else first

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        if self.potential and self.activation not in ("relu", "tanh"):
            return f"--potential needs --activation relu or tanh, whose slopes lie in [0, 1], got {self.activation}"
        if self.potential and self.residual:
            return "--potential is a residual of its own: leave out --residual"
        group = {"maxmin": 2, "groupsort": 8}.get(self.activation, 1)
        if self.depth > 1 and self.width % group:
            return f"--activation {self.activation} needs a --width divisible by {group}, got {self.width}"
        return self._layer_conflict()

    def _layer_conflict(self) -> str | None:
        who, least = f"--layer {self.layer}", {**dict.fromkeys(RESIDUAL, 3), "sandwich": 2}.get(self.layer, 1)
        if self.depth < least:
            return f"{who} needs a --depth of at least {least}, since a layer beside it is of another kind"
        if self.residual and self.layer in RESIDUAL:
            return f"{who} is residual by itself: leave out --residual"
        if self.potential and self.layer != "plain":
            return f"--potential needs plain matrices: leave out {who}"
        if self.layer in ACTIVE and self.activation not in SLOPES:
            return f"{who} needs --activation relu or tanh, with slopes in [0, 1]: with {self.activation} it can expand"
        return None

    def parameters(self, sizes: Sizes) -> int:
        """Without biases."""
        hidden = max(self.depth - 2, 0) * self.width
        inputs, classes, _ = sizes
        return self.width * (inputs + classes + hidden) if self.depth > 1 else inputs * classes
