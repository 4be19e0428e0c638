"""The part of a recipe that describes a convolutional network."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count, Part, Positive, Range
from lipzoo.data.config import Sizes
from lipzoo.layers.absolute import Abs
from lipzoo.layers.activation import ReLU, Tanh
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.sorting import GroupSort
from lipzoo.layers.stack import Remat
from lipzoo.models.config import AbstractModelConfig
from lipzoo.models.head import Head
from lipzoo.theory.convolution import Convolution, Padding

Activation = Literal["relu", "tanh", "maxmin", "abs"]
ACTIVATIONS: Mapping[Activation, Callable[[], AbstractModule]] = {
    "relu": ReLU,
    "tanh": Tanh,
    "maxmin": GroupSort,
    "abs": lambda: Abs(0.5),
}


@options
@dataclasses.dataclass(frozen=True)
class ConvNetConfig(AbstractModelConfig):
    """The part of a recipe that describes a convolutional network."""

    depth: Count = 4
    """Blocks of each stage."""
    stages: Annotated[int, Range(1, 8)] = 2
    """Stages; from one to the next images have half the height and width, and twice the channels."""
    width: Count = 32
    """Channels of the first stage."""
    patch: Count = 2
    """Squares of so many pixels a side become one pixel of many channels at first."""
    kernel: Count = 3
    """Height and width of the kernels."""
    border: Padding = "zero"
    """What stands outside an image: zeros, or the image itself again."""
    residual: Literal["potential", "convex", "none"] = "potential"
    """Blocks: x - hWᵀφ(Wx + b), which keep what W does not see; (1-α)x + αφ(Wx + b); or φ(Wx + b)."""
    potential_cap: Positive = 1.0
    """c of --residual potential: h = 2/c², so that blocks are 1-Lipschitz for kernels of norm up to c, as --sigma-max
    says."""
    alpha: Part = 0.5
    """α of --residual convex."""
    activation: Activation = "relu"
    """Nonlinearity φ; each is 1-Lipschitz. Maxmin and abs keep norms, but have no potential."""
    down: Literal["patches", "average"] = "patches"
    """What becomes of 2×2 pixels between stages: their channels side by side, or their mean; then comes a matrix."""
    bias: bool = True
    """Add a bias to every channel."""
    head: Head = "matrix"
    """What is held under the cap of the last matrix: the whole, or each of its rows by itself."""
    zero_init: bool = True
    """Start the last matrix at zero."""
    remat: Remat = "none"
    """What the backward pass computes anew, to save memory: nothing, all but products with weights, or whole blocks."""

    @property
    def branch(self) -> float:
        """By how much, at most, a change of a kernel by its norm is multiplied: 2hc = 4/c, α, or 1."""
        return {"potential": 4 / self.potential_cap, "convex": self.alpha, "none": 1.0}[self.residual]

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        if self.residual == "potential" and self.activation not in ("relu", "tanh"):
            return f"--residual potential needs --activation relu or tanh, got {self.activation}: blocks can be steeper"
        if self.activation == "maxmin" and self.width % 2:
            return f"--activation maxmin needs an even --width, got {self.width}"
        return None

    def misfit(self, sizes: Sizes) -> str | None:
        """Why these images cannot be cut up, or are too small, or None."""
        _, height, width = sizes.shape or (0, 1, 1)
        smallest = self.patch * 2 ** (self.stages - 1)
        if height % smallest or width % smallest:
            flags = f"--patch {self.patch} and --stages {self.stages}"
            return f"{flags} need images that {smallest} pixels divide, and these have {height}×{width}"
        try:
            for side in self.sides(sizes):
                Convolution(side, self.kernel, padding=self.border)
        except ValueError as error:
            return f"{error} after --patch {self.patch} and --stages {self.stages}: lower --kernel, or these"
        return None

    def sides(self, sizes: Sizes) -> list[tuple[int, int]]:
        """Height and width of the images of each stage."""
        _, height, width = sizes.shape
        shrunk = [self.patch * 2**stage for stage in range(self.stages)]
        return [(height // by, width // by) for by in shrunk]

    def parameters(self, sizes: Sizes) -> int:
        """Without biases, and without the matrices between stages."""
        (height, width), widths = self.sides(sizes)[-1], [self.width * 2**stage for stage in range(self.stages)]
        blocks = self.depth * self.kernel**2 * sum(size**2 for size in widths)
        return sizes.shape[0] * self.patch**2 * self.width + blocks + height * width * widths[-1] * sizes.classes
