"""Random changes of training images: the same for the same seed and index, on every machine."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lipzoo.data.batches import ALL
from lipzoo.data.rand_augment import RandAugment

Image = UInt8[np.ndarray, "rows c h w"]


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training images of `shape` (channels, height, width) are changed at random, in this order.

    **Attributes:**

    - `shift`: each is moved by up to so many pixels; what moves in is the image's edge, repeated.
    - `flip`: a random half is mirrored left to right.
    - `operations`: so many of `RandAugment`'s on each, of a `size` from 0 to 10.
    - `cutout`: the side of a square in each that becomes the mean colour of all training images (0 for none).
    """

    shape: tuple[int, int, int]
    flip: bool = False
    shift: int = 0
    cutout: int = 0
    operations: int = 0
    size: int = 5


class Augmented:
    """Training images, of values up to `white`, and their changes. Runs on the same images share it."""

    def __init__(self, augment: Augment, image: UInt8[np.ndarray, "n pixels"], white: int = 255):
        self._augment = augment
        self._white = white
        self._windows = _windows(image.reshape(-1, *augment.shape), augment.shift)

    def pick(
        self, chosen: Int[np.ndarray, " batch"], seed: list[int], rows: slice = ALL
    ) -> UInt8[np.ndarray, "rows pixels"]:
        """These `rows` of the chosen images, changed. All that is random is drawn for all of the chosen."""
        augment, batch, random = self._augment, len(chosen), np.random.RandomState(seed)
        down, right = random.randint(0, 2 * augment.shift + 1, (2, batch))
        image = self._windows[chosen[rows], :, down[rows], right[rows]]
        if augment.flip:
            half = (random.rand(batch) < 0.5)[rows]
            image[half] = image[half, ..., ::-1]
        if augment.operations:
            drawn = self._rand_augment.draw(augment.operations, batch, random)
            image = self._rand_augment(image, drawn[..., rows])
        if augment.cutout:
            centre = random.randint(0, augment.shape[1:], (batch, 2))
            cut_out(image, centre[rows], augment.cutout, self._mean)
        return image.reshape(len(image), math.prod(augment.shape))

    @functools.cached_property
    def _rand_augment(self) -> RandAugment:
        augment = self._augment
        return RandAugment(augment.shape, self._white, augment.size, self._mean)

    @functools.cached_property
    def _mean(self) -> UInt8[np.ndarray, " c"]:
        """The mean of all images, of each channel, rounded."""
        image = self._windows[:, :, self._augment.shift, self._augment.shift]
        total, count = image.sum((0, 2, 3), dtype=np.int64), image[:, 0].size
        return ((2 * total + count) // (2 * count)).astype(np.uint8)


def cut_out(image: Image, centre: Int[np.ndarray, "rows 2"], side: int, fill: UInt8[np.ndarray, " c"]) -> None:
    """Sets a square of each image to `fill`: `side` rows and columns, from ⌊side/2⌋ before its centre on, clipped.

    DeVries & Taylor (2017) fill with 0 after they have subtracted the mean of the training images, so with that mean.
    """

    def inside(axis: int) -> Bool[np.ndarray, "rows length"]:
        place = np.arange(image.shape[2 + axis]) - (centre[:, axis, None] - side // 2)
        return (place >= 0) & (place < side)

    square = inside(0)[:, None, :, None] & inside(1)[:, None, None, :]
    np.copyto(image, fill[:, None, None], where=square)


def _windows(image: UInt8[np.ndarray, "n c h w"], shift: int) -> UInt8[np.ndarray, "n c shifts shifts h w"]:
    """Every image in every place: a view of the images padded once, so that a batch is a single gather."""
    margin = (shift, shift)
    padded = np.pad(image, ((0, 0), (0, 0), margin, margin), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, image.shape[2:], axis=(2, 3))
