"""Convolutions of images, which are arrays of shape (height, width, channels)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule, check_axes, check_column, check_shape, check_weight
from lipzoo.theory.bound import Bound
from lipzoo.theory.convolution import Convolution
from lipzoo.theory.numbers import Scalar
from lipzoo.theory.runs import Arithmetic, Runs
from lipzoo.theory.space import Space, SpaceError, Vector
from lipzoo.theory.weight import Measure, Weight

Image = Float[Array, "height width channels"]
Other = Float[Array, "height_out width_out channels_out"]


class Conv2d(AbstractModule):
    """x ↦ K * x + b, K with the geometry `Convolution`, b one number for each channel, a `Weight` of one column.

    !!! example

        ```python
        kernel = Weight(array, "kernel", Convolution((16, 16), kernel=3))  # array of shape (out, in·9)
        Conv2d(kernel)(jnp.ones((16, 16, channels)))  # (16, 16, out)
        ```
    """

    deviates = True
    weight: Weight
    bias: Weight | None = None

    def __check_init__(self) -> None:
        check_weight(self.weight, "Conv2d", "(out, in·k²)")
        if not isinstance(self.weight.geometry, Convolution):
            raise ValueError(f"Conv2d takes a Weight whose geometry is a Convolution, got {self.weight.geometry!r}")

    @property
    def geometry(self) -> Convolution:
        """Kernel, stride, groups, padding, and the size of images."""
        return self.weight.geometry  # pyright: ignore[reportReturnType]

    @property
    def takes(self) -> Space:
        return Vector((*self.geometry.size, self.geometry.channels(self.weight.array.shape)[0]))

    @property
    def gives(self) -> Space:
        """The space of outputs."""
        return Vector((*self.geometry.out_size, self.weight.array.shape[-2]))

    def __call__(self, x: Image) -> Other:
        check_shape(x, self.takes.shape, self.weight.name)  # pyright: ignore[reportAttributeAccessIssue]
        geometry, kernel = self.geometry, self.kernel
        pads = [_pads(side, out, geometry) for side, out in zip(geometry.size, geometry.out_size, strict=True)]
        y = _convolved(x, kernel, pads, geometry)
        return y if self.bias is None else y + self.bias.array[None, None, :, 0]

    @property
    def kernel(self) -> Float[Array, "out in k l"]:
        """K; of several groups, (out, in/groups, k, k)."""
        size = self.geometry.kernel
        return self.weight.array.reshape(*self.weight.array.shape[:-1], -1, size, size)

    def transposed(self, y: Image) -> Other:
        """Kᵀy, of a convolution with stride 1: one with the kernel turned around, from as far on the other side."""
        geometry, kernel = self.geometry, self.kernel
        if geometry.stride != 1:
            raise ValueError(f"{self.weight.name} has the stride {geometry.stride}: what is transposed has stride 1")
        groups, after = geometry.groups, geometry.kernel - 1 - geometry.offset
        parts = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
        turned = parts.reshape(-1, *parts.shape[2:])[..., ::-1, ::-1]
        return _convolved(y, turned, [(after, geometry.offset)] * 2, geometry)

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        """(‖K‖r + ‖b‖, ‖K‖L): the RMS of b over channels is that over pixels too. What runs is off as a product with a
        matrix is whose rows have in·k² entries (`Runs.product`); sums are taken to be those of the definition, in any
        order: transforms (Winograd's, or Fourier's), which libraries for GPUs may choose, round otherwise.
        """
        check_axes(self.weight, "a kernel", "(out, in·k²)")
        if self.bias is not None:
            check_column(self.bias, self.weight.array.shape[0])
        if incoming.space != self.takes:
            raise SpaceError(f"{self.weight.name} takes {self.takes}, but was given {incoming.space}")
        image = incoming.scale(measure(self.weight)).to(self.gives)
        if self.bias is not None:
            image = image.shift(measure(self.bias))
        return image.off(lambda runs: self._error(runs, incoming.radius, measure))

    def _error(self, runs: Runs, radius: Scalar, measure: Measure) -> Scalar:
        error = runs.product(self.weight, radius, measure)
        error = error + runs.counted(lambda a: self._vanished(a, radius))
        size = measure(self.weight) * radius
        return error if self.bias is None else runs.plus(error, self.bias, size, measure)

    def _vanished(self, a: Arithmetic, radius: Scalar) -> Scalar:
        """What entries of the kernel below t do: up to tΣ|x| over each patch of n numbers, whose RMS is at most
        (⌈k/s⌉/k)·√(hw/h'w')·n·r (`Convolution`), which is n·r without a stride, and no more than s times that."""
        return a.smallest * self.weight.array.shape[-1] * (self.geometry.stride - 1) * radius


def _pads(side: int, out: int, geometry: Convolution) -> tuple[int, int]:
    """How many pixels are added before and after the image."""
    last = (out - 1) * geometry.stride + geometry.kernel - geometry.offset
    return geometry.offset, max(last - side, 0)


def _convolved(x: Image, kernel: Float[Array, "out in k l"], pads: Any, geometry: Convolution) -> Other:
    if geometry.padding == "circular":
        x = jnp.pad(x, (*pads, (0, 0)), mode="wrap")
        pads = [(0, 0), (0, 0)]
    y = jax.lax.conv_general_dilated(
        x[None],
        kernel,
        (geometry.stride, geometry.stride),
        pads,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=geometry.groups,
    )
    return y[0]
