"""RandAugment (Cubuk et al. 2019): a few operations on each image, drawn from a list, all of one size."""

import numpy as np
from jaxtyping import Int, UInt8

from lipzoo.data.tones import TONES
from lipzoo.data.warps import WARPS, sources, warped

OPERATIONS = (*TONES, *WARPS)
"""All of the paper's but sharpness, the only one that looks at neighbours."""
Image = UInt8[np.ndarray, "n c h w"]


class RandAugment:
    """Operations on images of `shape` (channels, height, width) and values up to `white`.

    **Arguments:**

    - `size`: of all operations, from 0 to 10.
    - `fill`: what is seen where an operation moves no pixel to, of each channel.
    """

    def __init__(self, shape: tuple[int, int, int], white: int, size: int, fill: UInt8[np.ndarray, " c"]):
        self._white, self._size, self._fill = white, size, fill
        self._sources = sources(*shape[1:], size)

    def draw(self, count: int, batch: int, random: np.random.RandomState) -> Int[np.ndarray, "2 count batch"]:
        """For each image of a batch, `count` numbers of operations, and whether each does more (1) or less (0)."""
        return np.stack([random.randint(0, high, (count, batch)) for high in (len(OPERATIONS), 2)])

    def __call__(self, image: Image, drawn: Int[np.ndarray, "2 count n"]) -> Image:
        """Images after the operations that `draw` has drawn for them."""
        for operation, more in zip(*drawn, strict=True):
            image = self._once(image, operation, more)
        return image

    def _once(self, image: Image, operation: Int[np.ndarray, " n"], more: Int[np.ndarray, " n"]) -> Image:
        changed = np.empty(image.shape, np.uint8)
        for number, tone in enumerate(TONES.values()):
            mine = np.flatnonzero(operation == number)
            changed[mine] = tone(image[mine], 2 * more[mine] - 1, self._size, self._white)
        mine = np.flatnonzero(operation >= len(TONES))
        source = self._sources[operation[mine] - len(TONES), more[mine]]
        changed[mine] = warped(image[mine], source, self._fill)
        return changed
