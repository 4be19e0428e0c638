"""Changes of the values of uint8 images: operations of RandAugment that leave each pixel where it is.

Each takes many images with values from 0 to `white`, a `size` from 0 to 10, and for each image a `sign` of 1 or -1,
whether to do more or less; those without a direction leave the sign unread. Computed in whole numbers, so that images
are the same on every machine. Definitions and ranges are those of AutoAugment (Cubuk et al. 2018, table 6).
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int, UInt8

Image = UInt8[np.ndarray, "n c h w"]
Sign = Int[np.ndarray, " n"]
Tone = Callable[[Image, Sign, int, int], Image]
ONE = 64
"""The factor 1 of `_blended`: with it 16 bits hold all products."""


def identity(image: Image, sign: Sign, size: int, white: int) -> Image:
    """No change."""
    return image


def brightness(image: Image, sign: Sign, size: int, white: int) -> Image:
    """Blends with black: the image times 1 ± 0.09 `size`."""
    return _blended(np.zeros_like(image, np.int16), image, sign, size, white)


def contrast(image: Image, sign: Sign, size: int, white: int) -> Image:
    """Blends with the mean of the image's greys, rounded: its distance is multiplied by 1 ± 0.09 `size`."""
    grey = _grey(image)
    total, count = grey.sum((1, 2, 3), dtype=np.int64, keepdims=True), image.shape[2] * image.shape[3]
    return _blended(((2 * total + count) // (2 * count)).astype(np.int16), image, sign, size, white)


def colour(image: Image, sign: Sign, size: int, white: int) -> Image:
    """Blends with the image in grey: the distance is multiplied by 1 ± 0.09 `size`. Grey images stay as they are."""
    return _blended(_grey(image), image, sign, size, white)


def posterize(image: Image, sign: Sign, size: int, white: int) -> Image:
    """Clears the lowest bits, up to half of them."""
    cleared = round(size / 10 * white.bit_length() / 2)
    return image >> cleared << cleared


def solarize(image: Image, sign: Sign, size: int, white: int) -> Image:
    """Inverts the brightest `size` tenths of all values."""
    threshold = white + 1 - round(size / 10 * (white + 1))
    return np.where(image >= threshold, np.uint8(white) - image, image)


def autocontrast(image: Image, sign: Sign, size: int, white: int) -> Image:
    """Stretches each channel: ⌊white (x - min) / (max - min)⌋. Constant channels stay as they are."""
    low, high = image.min((2, 3), keepdims=True), image.max((2, 3), keepdims=True)
    reach = (high - low).astype(np.int32)
    stretched = (image - low).astype(np.int32) * white // np.maximum(reach, 1)
    return np.where(reach > 0, stretched.astype(np.uint8), image)


def equalize(image: Image, sign: Sign, size: int, white: int) -> Image:
    """Makes all values of each channel about equally frequent: x becomes white (F(x) - F(min)) / (1 - F(min)), rounded,
    where F(x) is the part of the channel's pixels that are at most x. Constant channels stay as they are.

    That is the formula of the textbooks; Pillow's step of whole pixels saturates where there are as few as here.
    """
    channel = image.reshape(-1, image.shape[2] * image.shape[3])
    first = (white + 1) * np.arange(len(channel))[:, None]
    place = channel + first
    upto = np.bincount(place.ravel(), minlength=(white + 1) * len(channel)).reshape(-1, white + 1).cumsum(1)
    least = np.take_along_axis(upto, channel.min(1, keepdims=True).astype(np.int64), 1)
    rest = upto[:, -1:] - least
    table = (white * np.maximum(upto - least, 0) + rest // 2) // np.maximum(rest, 1)
    table = np.where(rest > 0, table, np.arange(white + 1))
    return table.astype(np.uint8).ravel()[place].reshape(image.shape)


TONES: Mapping[str, Tone] = {
    tone.__name__: tone
    for tone in (identity, autocontrast, equalize, brightness, contrast, colour, posterize, solarize)
}


def _blended(start: Int[np.ndarray, " n #c #h #w"], image: Image, sign: Sign, size: int, white: int) -> Image:
    """start + factor (image - start), rounded down and clipped, with the factor 1 ± 0.09 `size` in 64ths."""
    factor = (ONE + sign * round(0.09 * ONE * size)).astype(np.int16)[:, None, None, None]
    change = factor * (image.astype(np.int16) - start)
    return np.clip(start + change // ONE, 0, white).astype(np.uint8)


def _grey(image: Image) -> Int[np.ndarray, "n 1 h w"]:
    """Luma by ITU-R BT.601, rounded, of three channels; one channel is grey already."""
    if image.shape[1] != 3:
        return image.astype(np.int16)
    red, green, blue = np.moveaxis(image.astype(np.int32), 1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16).astype(np.int16)[:, None]
