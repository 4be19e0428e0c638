"""Layers of images of other libraries, with channels first, as layers of this one, with channels last."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lipzoo.interop.parts import array_of, column
from lipzoo.interop.place import Place
from lipzoo.layers.base import AbstractModule
from lipzoo.layers.convolution import Conv2d
from lipzoo.layers.image import ChannelsFirst, Crop
from lipzoo.layers.linear import Affine, Flatten, Pointwise
from lipzoo.layers.pooling import AveragePool, MaxPool
from lipzoo.theory.convolution import Convolution
from lipzoo.theory.geometry import ENTRIES
from lipzoo.theory.weight import Weight

Pair = tuple[int, int]
PADDINGS = {"ZEROS": "zero", "CIRCULAR": "circular"}
"""Names of what stands outside an image, there and here."""


class Options(NamedTuple):
    """How a convolution is taken: `pads` are so many pixels before and after each of both axes."""

    stride: Pair
    dilation: Pair
    groups: int
    pads: tuple[Pair, Pair]
    outside: str


class Along(NamedTuple):
    """Of one axis: where in a larger kernel this one begins; and which of the larger one's outputs are wanted."""

    begin: int
    first: int
    outputs: int


def convolution(kernel: Any, bias: Any, options: Options, place: Place) -> list[AbstractModule]:
    """K * x + b, K of shape (out, in/groups, k, l).

    `Conv2d` has square kernels, whose taps begin max(k - s, 0)//2 pixels before an output, and ⌈h/s⌉ outputs. So K
    stands among zeros in the smallest such kernel that has its taps, and what is more than its outputs is cut off.

    **Raises:** ValueError for options that `Conv2d` does not have.
    """
    height, width, _ = place.image("Conv2d")
    kernel = np.asarray(kernel)
    _check(kernel, options, place)
    size, *axes = _placed(kernel.shape[-2:], options, (height, width), place)
    grown = np.zeros((*kernel.shape[:2], size, size), kernel.dtype)
    rows, columns = (slice(axis.begin, axis.begin + side) for axis, side in zip(axes, kernel.shape[-2:], strict=True))
    grown[..., rows, columns] = kernel
    try:
        geometry = Convolution((height, width), size, options.stride[0], options.groups, PADDINGS[options.outside])  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"{place} is a Conv2d that from_layers does not take: {error}") from error
    weight = Weight(array_of(grown.reshape(len(grown), -1), place.name), place.name, geometry)
    layer = Conv2d(weight, None if bias is None else column(np.ravel(bias), place.name))
    return [layer, *_cut(axes, geometry.out_size)]


def _check(kernel: np.ndarray, options: Options, place: Place) -> None:
    wrong = None
    if kernel.ndim != 4:
        wrong = f"whose kernel has the shape {kernel.shape}: of an ensemble take one member"
    elif set(options.dilation) != {1}:
        wrong = f"of dilation {options.dilation}: from_layers takes 1"
    elif len(set(options.stride)) > 1:
        wrong = f"of stride {options.stride}: from_layers takes one for both axes"
    elif options.outside not in PADDINGS:
        wrong = f"with padding_mode {options.outside}: from_layers takes zeros and circular"
    if wrong:
        raise ValueError(f"{place} is a Conv2d {wrong}")


def _placed(kernel: Pair, options: Options, sides: Pair, place: Place) -> tuple[int, Along, Along]:
    """The smallest square kernel in which one stands, and where. Raises ValueError if there is none."""
    widest = max(*kernel, *(pad for pads in options.pads for pad in pads))
    for size in range(max(kernel), 2 * (widest + options.stride[0]) + 1):
        axes = [
            _along(k, size, options.stride[0], pads, side)
            for k, pads, side in zip(kernel, options.pads, sides, strict=True)
        ]
        if axes[0] and axes[1]:
            return size, axes[0], axes[1]
    how = f"of a {kernel[0]}×{kernel[1]} kernel with the padding {options.pads} and stride {options.stride[0]}"
    outputs = "from_layers takes those with at least one output, and no more than one for every stride"
    raise ValueError(f"{place} is a Conv2d {how} on {sides[0]}×{sides[1]} pixels: {outputs}")


def _along(kernel: int, size: int, stride: int, pads: Pair, side: int) -> Along | None:
    """Output i has the taps si + a - pads[0]; output i + t of the larger kernel those at s(i + t) + z + a - offset."""
    count, most, offset = (side + sum(pads) - kernel) // stride + 1, -(-side // stride), max(size - stride, 0) // 2
    for first in range(most - count + 1 if count > 0 else 0):
        begin = offset - pads[0] - stride * first
        if 0 <= begin <= size - kernel:
            return Along(begin, first, count)
    return None


def _cut(axes: list[Along], sides: Pair) -> list[Crop]:
    """What keeps the outputs that are wanted, unless these are all."""
    rows, columns = axes
    return (
        []
        if (rows.outputs, columns.outputs) == sides
        else [Crop(rows.first, columns.first, rows.outputs, columns.outputs)]
    )


def pool(kind: str, window: Pair, stride: Pair, pads: Any, ceil: bool, place: Place) -> list[AbstractModule]:
    """The mean or the largest of squares side by side. What is left at the end is cut off.

    **Raises:** ValueError if they overlap, or reach beyond the image.
    """
    height, width, _ = place.image(kind)
    size = window[0]
    if set(window) != {size} or tuple(stride) != tuple(window) or np.any(pads):
        how = f"of {window[0]}×{window[1]} pixels, stride {stride} and padding {pads}"
        raise ValueError(f"{place} is a {kind} {how}: from_layers takes squares side by side, without padding")
    rows, columns = height // size, width // size
    whole = (rows * size, columns * size) == (height, width)
    if not rows * columns or (ceil and not whole):
        how = f"of {size}×{size} pixels that do not divide an image of {height}×{width}"
        raise ValueError(f"{place} is a {kind} {how}: from_layers takes whole squares")
    pooled = AveragePool(size) if kind == "AvgPool2d" else MaxPool(size)
    return [pooled] if whole else [Crop(0, 0, rows * size, columns * size), pooled]


def batch_norm(mean: Any, variance: Any, epsilon: float, gain: Any, bias: Any, place: Place) -> AbstractModule:
    """γ ⊙ (x - m)/√(v + ε) + β with known m and v: fγ ⊙ x + (β - fγ ⊙ m), f = 1/√(v + ε), of entries or of channels.

    Unlike all other weights these are computed: in float64, and rounded to the type of m.
    """
    factor, offset = 1 / np.sqrt(np.asarray(variance, np.float64) + epsilon), np.zeros(mean.shape)
    factor = factor if gain is None else factor * gain
    offset = (offset if bias is None else bias) - factor * mean
    gains, shift = array_of(factor.astype(mean.dtype), place.name), column(offset.astype(mean.dtype), place.name)
    if place.sees_image:
        return Pointwise(Weight(jnp.diag(gains), place.name), shift)
    return Affine(Weight(gains.reshape(-1, 1, 1), f"{place.name}.gain", ENTRIES), shift)


def folded(layers: Iterable[AbstractModule]) -> list[AbstractModule]:
    """The layers, with every convolution that a `batch_norm` comes after as one with the kernel γ ⊙ K.

    Its norm may be far below max|γ|·‖K‖. What is between them, if anything, is a crop.
    """
    found: list[AbstractModule] = []
    for layer in layers:
        place = next((index for index in reversed(range(len(found))) if not isinstance(found[index], Crop)), -1)
        before = found[place] if found else None
        if isinstance(layer, Pointwise) and isinstance(before, Conv2d):
            found[place] = _scaled(before, layer)
        else:
            found.append(layer)
    return found


def _scaled(layer: Conv2d, norm: Pointwise) -> Conv2d:
    """γ ⊙ (K * x + b) + β."""
    kernel = np.asarray(layer.weight.array)
    gain, offset = np.diagonal(norm.weight.array).astype(np.float64), np.asarray(norm.bias.array)[:, 0]  # pyright: ignore[reportOptionalMemberAccess]
    if layer.bias is not None:
        offset = gain * np.asarray(layer.bias.array)[:, 0] + offset
    weight = layer.weight.with_array(jnp.asarray((gain[:, None] * kernel).astype(kernel.dtype)))
    return Conv2d(weight, column(offset.astype(kernel.dtype), weight.name))


def flatten(place: Place) -> list[AbstractModule]:
    """One vector, in the order of channels first."""
    return [ChannelsFirst(), Flatten()] if place.sees_image else [Flatten()]
