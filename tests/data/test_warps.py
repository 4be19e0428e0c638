"""Warps: where each pixel comes from, by exact fractions and by Pillow."""

import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from lipzoo.data.warps import WARPS, sources, warped

FILL = np.array([7, 8, 9], np.uint8)


def nearest(height, width, matrix, shift):
    """The pixel that comes to each place, one by one; near a tie, either."""

    def number(place):
        y, x = (math.floor(p + Fraction(1, 2)) for p in place)
        return y * width + x if 0 <= y < height and 0 <= x < width else height * width

    found = []
    for y, x in np.ndindex(height, width):
        v, u = Fraction(2 * y - height + 1, 2), Fraction(2 * x - width + 1, 2)
        rows = zip(matrix, (height, width), shift, strict=True)
        place = [row[0] * v + row[1] * u + Fraction(side - 1, 2) + move for row, side, move in rows]
        found.append({number([p + error for p in place]) for error in (-Fraction(1, 4096), Fraction(1, 4096))})
    return found


def exact(name, part, height, width):
    cos, sin = (Fraction(f(math.radians(30 * part))) for f in (math.cos, math.sin))
    most = Fraction(3, 10) * part
    return {
        "shear-x": ([(1, 0), (most, 1)], (0, 0)),
        "shear-y": ([(1, most), (0, 1)], (0, 0)),
        "translate-x": ([(1, 0), (0, 1)], (0, round(most * width))),
        "translate-y": ([(1, 0), (0, 1)], (round(most * height), 0)),
        "rotate": ([(cos, sin), (-sin, cos)], (0, 0)),
    }[name]


@pytest.mark.parametrize("size", [0, 3, 4, 10])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7)])
def test_pixels_come_from_where_the_matrix_says(height, width, size):
    found = sources(height, width, size)
    for number, name in enumerate(WARPS):
        for more in (0, 1):
            part = Fraction((2 * more - 1) * size, 10)
            expected = nearest(height, width, *exact(name, part, height, width))
            for source, near in zip(found[number, more].tolist(), expected, strict=True):
                assert source in near, (name, part)
    if size == 0:
        assert (found == np.arange(height * width)).all()


def test_rotations_are_those_of_pillow():
    image = np.random.RandomState(0).randint(0, 256, (1, 3, 32, 32)).astype(np.uint8)
    for size in range(1, 11):
        for more, degrees in ((0, -3 * size), (1, 3 * size)):
            source = sources(32, 32, size)[list(WARPS).index("rotate"), more]
            found = warped(image, source[None], FILL)[0].transpose(1, 2, 0)
            turned = Image.fromarray(image[0].transpose(1, 2, 0)).rotate(degrees, fillcolor=tuple(FILL.tolist()))
            assert (found != np.asarray(turned)).any(2).sum() <= 1  # Where a place is close to a tie.


def test_each_image_has_its_own_source_and_no_pixel_comes_from_outside():
    image = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2)
    found = warped(image, np.array([[3, 2, 1, 0], [4, 0, 4, 1]]), FILL)
    np.testing.assert_array_equal(found[0], image[0, :, ::-1, ::-1])
    for channel, fill in enumerate(FILL):
        first = image[1, channel].ravel()
        np.testing.assert_array_equal(found[1, channel].ravel(), [fill, first[0], fill, first[1]])
    assert warped(image[:0], np.zeros((0, 4), int), FILL).shape == (0, 3, 2, 2)
