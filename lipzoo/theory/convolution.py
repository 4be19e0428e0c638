"""The geometry of a convolution's kernel."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.theory import frequencies, norms
from lipzoo.theory.excess import largest_gram_excess
from lipzoo.theory.frequencies import Axis
from lipzoo.theory.geometry import Geometry, Map
from lipzoo.theory.products import unit_roundoff

Padding = Literal["zero", "circular"]
SQUARINGS = 7
"""Of the Gram iteration at each frequency: 0.15% above σ₁ for 64 channels of orthogonal weights, at most 0.96%."""
LARGEST_ENTRY = 2.0**60
"""Kernels with larger entries are first divided down to this, so that their norm is a number in float32."""


@dataclasses.dataclass(frozen=True)
class Convolution(Geometry):
    """Kernels of convolutions of images, as matrices of shape (..., out, in/groups·k²); a row holds (in/groups, k, k).

    The output at pixel (i, j) is Σ K[:, :, a, b]·x[s·i + a - p, s·j + b - p], s the stride, p = max(k - s, 0)//2, for
    ⌈h/s⌉×⌈w/s⌉ pixels. The norm is that of the convolution as a map of images on this grid: RMS → RMS over all entries
    of all channels. With groups it is the largest of theirs, each of which maps channels of its own.

    **Unfolding.** Let P take an image to its patches, one of ink² entries for each output. A pixel lies in at most
    ⌈k/s⌉² of them, for of the k distances along an axis at most ⌈k/s⌉ differ by multiples of s, so ‖P‖₂ ≤ ⌈k/s⌉; the
    convolution is P and then the matrix K on each patch: so its σ₁ is at most ⌈k/s⌉·σ₁(K). By that `steepest` scales.

    A constraint is told the norm of a kernel (an upper bound) as that of a single number, and the kernel is multiplied
    by what the number is: what caps norms holds that of the convolution, by division.

    **Attributes:**

    - `size`: height and width of the images that come in.
    - `padding`: what stands outside an image, `zero` or `circular`: the image itself again.

    **Raises:** ValueError if some tap meets no pixel, or meets the same ones as another; if there is no such stride.
    """

    size: tuple[int, int]
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    padding: Padding = "zero"

    single = True

    def __post_init__(self) -> None:
        if min(*self.size, self.kernel, self.stride, self.groups) < 1:
            raise ValueError(f"a convolution needs sizes of at least 1, but was given {self}")
        if self.padding not in ("zero", "circular"):
            raise ValueError(f"the padding of a convolution must be zero or circular, got {self.padding!r}")
        for side, blocks, axis in zip(self.size, self.out_size, self.axes, strict=True):
            if self.padding == "circular" and side % self.stride:
                raise ValueError(f"a circular convolution of stride {self.stride} does not divide {side} pixels")
            reach = [q for q, _ in axis.distances]
            if max(map(abs, reach)) >= blocks or (self.padding == "circular" and max(reach) - min(reach) >= blocks):
                raise ValueError(f"a kernel of {self.kernel} does not fit an image of {self.size[0]}×{self.size[1]}")

    def check_multiplied(self, name: str) -> None:
        """Raises ValueError."""
        raise ValueError(f"{name} has the geometry of a kernel, measured as a convolution: give it to a Conv2d")

    @property
    def offset(self) -> int:
        """p: by so many pixels taps begin before the output's own."""
        return max(self.kernel - self.stride, 0) // 2

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the images that go out."""
        height, width = self.size
        return -(-height // self.stride), -(-width // self.stride)

    @property
    def unfolding(self) -> int:
        """⌈k/s⌉, the norm of taking patches."""
        return -(-self.kernel // self.stride)

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns, as frequencies see them."""
        return tuple(self._axis(blocks) for blocks in self.out_size)  # pyright: ignore[reportReturnType]

    def _axis(self, blocks: int) -> Axis:
        if self.kernel <= self.stride:  # No two taps have the same r.
            return Axis(self.kernel, self.stride, self.offset, 1)
        axis = Axis(self.kernel, self.stride, self.offset, blocks)
        reach = max(abs(q) for q, _ in axis.distances) if self.padding == "zero" else 0
        return dataclasses.replace(axis, period=blocks + reach)

    def channels(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many channels come in and go out. Raises ValueError if a kernel cannot have this shape."""
        (out, inner), taps = shape[-2:], self.kernel**2
        if inner % taps or out % self.groups:
            wanted = f"(out, in/{self.groups}·{taps}), out divisible by {self.groups}"
            raise ValueError(f"the matrix of a {self.kernel}×{self.kernel} kernel has the shape {wanted}, got {shape}")
        return inner // taps * self.groups, out

    def split(self, array: Any) -> Any:
        """The kernels of the groups, shape (..., groups, out/groups, in/groups, k²)."""
        into, out = self.channels(array.shape)
        shape = self.groups, out // self.groups, into // self.groups, self.kernel**2
        return array.reshape(*array.shape[:-2], *shape)

    def rms_factor(self, shape: Sequence[int]) -> float:
        """√(n_in/n_out) for images of n = channels·height·width entries."""
        into, out = self.channels(shape)
        return norms.rms_factor(out * math.prod(self.out_size), into * math.prod(self.size))

    def exact_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """Upper bounds in float64 (see `lipzoo.theory.frequencies.spectral_norm`): exact on a torus, and with zeros
        around, of a kernel on a torus that is a little larger."""
        parts = self.split(np.asarray(array))
        parts = parts.reshape(*parts.shape[:-1], self.kernel, self.kernel)
        sigma = frequencies.spectral_norm(parts, *self.axes).max(-1)
        return np.asarray(sigma * self.rms_factor(array.shape) * (1 + 2.0**-50))

    def gram_norm(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
        """Upper bounds by Gram iteration at each frequency (see `lipzoo.theory.frequencies.gram_norm`)."""
        parts = self.split(array)
        if self.kernel <= self.stride:
            sigma = norms.gram_norm(parts.reshape(*parts.shape[:-2], -1), SQUARINGS)
        else:
            sigma = frequencies.gram_norm(parts, *self.axes, SQUARINGS)
        return sigma.max(-1) * self.rms_factor(array.shape) * (1 + 2 * unit_roundoff(sigma.dtype))

    def steepest(
        self, gradient: Float[Array, "*batch out in"], sign: Map, inflation: float
    ) -> Float[Array, "*batch out in"]:
        """msign of the matrix (of each group), divided by what makes of its norm that of a convolution at most.

        So it is no larger than 1, as far as `sign` goes, but not the steepest: unlike in the norm of a matrix, which it
        maximizes ⟨G, U⟩ in, its norm as a convolution may be smaller.
        """
        parts = self.split(gradient)
        signs = sign(parts.reshape(*parts.shape[:-2], -1))
        return signs.reshape(gradient.shape) / (self.unfolding * self.rms_factor(gradient.shape))

    def hold(self, array: Float[Array, "*batch out in"], constrain: Map) -> Float[Array, "*batch out in"]:
        """K·c/b, c what `constrain` makes of an upper bound b of the norm, as a 1×1 matrix.

        Where c ≤ cap, so is the norm: it is at most b, with what rounding the product adds (`roundings` of u, twice).
        """
        scaled, unit, _ = norms.scaled(array)
        array = jnp.where((unit > LARGEST_ENTRY)[..., None, None], scaled * LARGEST_ENTRY, array)
        rounding = (2 * self.roundings(array.shape) + 8) * unit_roundoff(array.dtype)
        bound = self.gram_norm(array).astype(array.dtype)[..., None, None] * (1 + rounding)
        return array * jnp.where(bound > 0, constrain(bound) / jnp.maximum(bound, jnp.finfo(bound.dtype).tiny), 1)

    def cut(self, array: Float[np.ndarray, "*batch out in"], cap: float) -> Float[np.ndarray, "*batch out in"]:
        """The kernels divided by what their norms exceed `cap` by."""
        with np.errstate(divide="ignore"):
            return array * np.minimum(1, cap / self.exact_norm(array))[..., None, None]

    def roundings(self, shape: Sequence[int]) -> float:
        """⌈k/s⌉√s, s the smaller side: a change of the matrix by at most u‖K‖_F changes the convolution by ⌈k/s⌉u√s
        times σ₁(K), which is no larger than the σ₁ of the convolution (`lipzoo.theory.frequencies.gram_excess`)."""
        return self.unfolding * super().roundings(shape)

    def moves(self, shape: Sequence[int], moves: Callable[[Sequence[int], float], float], norm: float) -> float:
        """By how much `hold` moves a kernel of at most this norm.

        The upper bound b is at most 1 + x times as large. ‖K‖·|1 - c/b| ≤ |b - c|, and the product is rounded.
        """
        into, out = (channels // self.groups for channels in self.channels(shape))
        # Stride s makes of a pixel min(k, s)² channels, and real and imaginary parts are two.
        sides = (2 * out, 2 * into * min(self.kernel, self.stride) ** 2)
        excess = frequencies.gram_excess(out, into, self.kernel**2, largest_gram_excess(sides, "float32", SQUARINGS))
        rounding = (2 * self.roundings(shape) + 16) * unit_roundoff("float32")
        reached = norm * (1 + excess) * (1 + rounding)
        return moves((1, 1), reached) + rounding * reached
