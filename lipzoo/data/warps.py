"""Changes of the places of pixels: shears, translations and rotations of RandAugment, by nearest neighbour."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int, UInt8

Rows = tuple[tuple[float, float], tuple[float, float]]
Pixels = tuple[int, int]
Warp = Callable[[float, int, int], tuple[Rows, Pixels]]
BITS = 16
"""Of the fraction of coefficients: whole numbers make the same images on every machine."""
SHEAR, TURN, SIDE = 0.3, math.pi / 6, 0.3
"""The largest changes: AutoAugment's (Cubuk et al. 2018, table 6), of whose code a translation is 10 of 32 pixels."""
STILL: Rows = ((1.0, 0.0), (0.0, 1.0))

WARPS: Mapping[str, Warp] = {
    "shear-x": lambda part, height, width: (((1.0, 0.0), (SHEAR * part, 1.0)), (0, 0)),
    "shear-y": lambda part, height, width: (((1.0, SHEAR * part), (0.0, 1.0)), (0, 0)),
    "translate-x": lambda part, height, width: (STILL, (0, round(SIDE * part * width))),
    "translate-y": lambda part, height, width: (STILL, (round(SIDE * part * height), 0)),
    "rotate": lambda part, height, width: (_turned(TURN * part), (0, 0)),
}
"""Where a pixel comes from, as seen from the centre: a matrix for (y, x), and whole pixels to be added to it."""


def sources(height: int, width: int, size: int) -> Int[np.ndarray, "warps signs pixels"]:
    """For each warp of `size` tenths of the largest, in both directions (-1, 1), and for each pixel of an image: the
    number of the pixel that comes there, or height × width where none does.
    """
    parts = (-size / 10, size / 10)
    return np.array([[_source(height, width, *warp(part, height, width)) for part in parts] for warp in WARPS.values()])


def warped(
    image: UInt8[np.ndarray, "n c h w"], source: Int[np.ndarray, "n pixels"], fill: UInt8[np.ndarray, " c"]
) -> UInt8[np.ndarray, "n c h w"]:
    """Images whose pixels are taken from where `source` says, and where that is nowhere, are `fill`."""
    count, channels = image.shape[:2]
    outside = np.broadcast_to(fill[:, None], (count, channels, 1))
    flat = np.concatenate([image.reshape(count, channels, source.shape[1]), outside], 2)
    return np.take_along_axis(flat, source[:, None], 2).reshape(image.shape)


def _turned(angle: float) -> Rows:
    return (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))


def _source(height: int, width: int, rows: Rows, pixels: Pixels) -> Int[np.ndarray, " pixels"]:
    y, x = np.mgrid[:height, :width]
    down, right = 2 * y - (height - 1), 2 * x - (width - 1)  # From the centre, in half pixels.

    def nearest(row: tuple[float, float], shift: int, side: int) -> Int[np.ndarray, "h w"]:
        by_down, by_right = (round(value * (1 << BITS)) for value in row)
        return shift + ((by_down * down + by_right * right + (side << BITS)) >> (BITS + 1))

    from_y, from_x = nearest(rows[0], pixels[0], height), nearest(rows[1], pixels[1], width)
    inside = (from_y >= 0) & (from_y < height) & (from_x >= 0) & (from_x < width)
    return np.where(inside, width * from_y + from_x, height * width).ravel()
