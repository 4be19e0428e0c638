"""Tones: bit for bit what Pillow does, where it does the same; else against definitions pixel by pixel."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from lipzoo.data.tones import TONES

RANDOM = np.random.RandomState(0)
PLAIN = RANDOM.randint(0, 256, (6, 3, 8, 5)).astype(np.uint8)
PLAIN[1] //= 3  # Dark ones, and one that is constant in a channel.
PLAIN[2] = 255 - PLAIN[2] // 4
PLAIN[3, 1] = 77
UP, DOWN = np.ones(6, int), -np.ones(6, int)
FACTOR = {size: round(0.09 * 64 * size) / 64 for size in range(11)}


def by_pillow(image, change):
    """What Pillow makes of images of three channels."""
    return np.stack([np.asarray(change(Image.fromarray(x.transpose(1, 2, 0)))).transpose(2, 0, 1) for x in image])


@pytest.mark.parametrize("size", range(11))
@pytest.mark.parametrize("sign", [UP, DOWN], ids=["up", "down"])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("colour", ImageEnhance.Color)],
)
def test_blends_are_those_of_pillow(name, enhancer, sign, size):
    factor = 1 + sign[0] * FACTOR[size]
    expected = by_pillow(PLAIN, lambda image: enhancer(image).enhance(factor))
    np.testing.assert_array_equal(TONES[name](PLAIN, sign, size, 255), expected)
    assert factor == pytest.approx(1 + sign[0] * 0.09 * size, abs=0.008)


@pytest.mark.parametrize("size", range(11))
def test_posterizing_and_solarizing_are_those_of_pillow(size):
    bits = 8 - round(0.4 * size)
    expected = by_pillow(PLAIN, lambda image: ImageOps.posterize(image, bits))
    np.testing.assert_array_equal(TONES["posterize"](PLAIN, UP, size, 255), expected)
    threshold = 256 - round(25.6 * size)
    expected = by_pillow(PLAIN, lambda image: ImageOps.solarize(image, threshold))
    np.testing.assert_array_equal(TONES["solarize"](PLAIN, UP, size, 255), expected)


def test_autocontrast_is_that_of_pillow_but_for_its_rounding():
    expected = by_pillow(PLAIN, ImageOps.autocontrast).astype(int)
    found = TONES["autocontrast"](PLAIN, UP, 5, 255).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.95
    assert found[1].min() == 0
    assert found[1].max() == 255


@pytest.mark.parametrize("white", [255, 16])
def test_equalized_values_are_the_parts_of_pixels_that_are_at_most_as_bright(white):
    image = (PLAIN.astype(int) * white // 255).astype(np.uint8)
    found = TONES["equalize"](image, UP, 5, white)
    for before, after in zip(image.reshape(-1, 40), found.reshape(-1, 40), strict=True):
        least = (before == before.min()).sum()
        for x, y in zip(before.tolist(), after.tolist(), strict=True):
            part = ((before <= x).sum() - least) / max(40 - least, 1)
            assert y == x if least == 40 else abs(y - white * part) <= 0.5


@pytest.mark.parametrize("name", TONES)
@pytest.mark.parametrize("white", [255, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_tone_keeps_shape_kind_and_range_and_leaves_its_argument_alone(name, white, channels):
    image = (PLAIN[:, :channels].astype(int) * white // 255).astype(np.uint8)
    before = image.copy()
    for size in (0, 5, 10):
        for sign in (UP, DOWN):
            changed = TONES[name](image, sign, size, white)
            assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
            assert changed.max() <= white
            if size == 0 and name not in ("autocontrast", "equalize"):
                np.testing.assert_array_equal(changed, before)
            if channels == 1 and name == "colour":
                np.testing.assert_array_equal(changed, before)
        assert TONES[name](image[:0], UP[:0], size, white).shape == (0, *image.shape[1:])
    np.testing.assert_array_equal(image, before)


def test_directions_are_those_of_each_image():
    sign = np.array([1, -1, 1, -1, 1, -1])
    for name, tone in TONES.items():
        alone = [tone(PLAIN[i : i + 1], sign[i : i + 1], 6, 255)[0] for i in range(6)]
        np.testing.assert_array_equal(tone(PLAIN, sign, 6, 255), alone, err_msg=name)
