"""The stream of batches: epochs are permutations, a stream goes on where it was, labels are random as asked."""

import numpy as np
import pytest

from lipzoo.data import Augment, DataConfig, Form, ShuffledBatches, Split, iterate
from lipzoo.data.augment import Augmented
from lipzoo.data.digits import load_digits
from lipzoo.data.images import as_pixels, randomize_labels


def numbered(count):
    """Images of 2×3 pixels; the first pixel tells which one it is."""
    image = np.zeros((count, 6), np.uint8)
    image[:, 0] = np.arange(count)
    image[:, 2] = 200
    return Split(image, np.arange(count, dtype=np.int32))


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (7, 16)])
def test_every_epoch_visits_every_image_once_in_a_new_order(count, batch_size):
    epochs = 8
    stream = iterate(ShuffledBatches(numbered(count), batch_size, count * epochs // batch_size, 3))
    seen = np.concatenate([batch["label"] for batch in stream])
    orders = [seen[i * count : (i + 1) * count] for i in range(len(seen) // count)]
    for order in orders:
        assert sorted(order) == list(range(count))
    assert any((orders[0] != order).any() for order in orders[1:])


def test_the_stream_goes_on_from_a_saved_state():
    stream = iterate(ShuffledBatches(numbered(10), 3, 20, 0))
    for _ in range(7):
        next(stream)
    state = stream.get_state()
    rest = [batch["label"].tolist() for batch in stream]
    again = iterate(ShuffledBatches(numbered(10), 3, 20, 0))
    again.set_state(state)
    assert [batch["label"].tolist() for batch in again] == rest
    assert len(rest) == 13


def test_mirroring_reverses_rows_of_about_half_of_the_images():
    augment = Augment((1, 2, 3), flip=True)
    split = numbered(100)
    stream = iterate(ShuffledBatches(split, 100, 20, 0, Augmented(augment, split.input)))
    mirrored = 0
    for batch in stream:
        plain = numbered(100).input[batch["label"]].reshape(-1, 2, 3)
        image = batch["input"].reshape(-1, 2, 3)
        same, reverse = (image == plain).all((1, 2)), (image == plain[..., ::-1]).all((1, 2))
        assert (same | reverse).all()
        mirrored += int((~same).sum())
    assert 800 < mirrored < 1200


def test_shifted_images_are_windows_of_the_padded_image():
    image = np.random.default_rng(0).integers(0, 256, (300, 2 * 5 * 4), np.uint8)
    augment = Augment((2, 5, 4), shift=2)
    shifted = Augmented(augment, image).pick(np.arange(300), [0]).reshape(-1, 2, 5, 4)
    seen = set()
    for x, y in zip(image.reshape(-1, 2, 5, 4), shifted, strict=True):
        places = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if (x[:, np.clip(np.arange(5) + down, 0, 4)][..., np.clip(np.arange(4) + right, 0, 3)] == y).all()
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 25


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_randomized_labels(fraction):
    split = Split(np.zeros((5000, 6), np.uint8), np.arange(5000, dtype=np.int32) % 10)
    changed = randomize_labels(split, fraction, 10, seed=1)
    assert (changed.label != split.label).mean() == pytest.approx(0.9 * fraction, abs=0.02)
    assert changed.label.min() >= 0
    assert changed.label.max() <= 9
    assert changed.input is split.input
    np.testing.assert_array_equal(changed.label, randomize_labels(split, fraction, 10, seed=1).label)


def test_digits_are_whole_and_only_training_labels_are_randomized():
    images = load_digits()
    assert images.train.input.shape == (1437, 64)
    assert images.test.input.shape == (360, 64)
    assert images.train.input.max() == images.white == 16
    assert set(images.test.label) == set(range(10))
    random = DataConfig(randomize_labels=1.0).load(seed=0)
    np.testing.assert_array_equal(random.test.label, images.test.label)
    assert (random.train.label != images.train.label).mean() > 0.8


FORM = Form((3, 4, 6), white=255, classes=2)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 4, 6), None), ((72,), None), ((4, 6, 3), (0, 2, 3, 1))],
    ids=["channels first", "flat", "channels last"],
)
@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("kind", ["whole", "float"])
def test_images_in_every_layout_are_the_same_pixels(shape, axes, many, kind):
    images = np.random.RandomState(0).randint(0, 256, (5 if many else 1, 3, 4, 6)).astype(np.uint8)
    given = images if axes is None else images.transpose(axes)
    given = given.reshape(-1, *shape) if many else given.reshape(shape)
    pixels = as_pixels(given if kind == "whole" else given.astype(np.float64) / 255, FORM)
    np.testing.assert_allclose(pixels, images.reshape(len(images), -1) / 255, atol=1e-7)
    assert pixels.dtype == np.float32


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.full((2, 72), 255.0), "floats from 0 to 1"),
        (np.full((2, 72), np.nan), "floats from 0 to 1"),
        (np.full((2, 72), 256), "whole numbers from 0 to 255, but lie between 256 and 256"),
        (np.full((2, 72), -1), "whole numbers from 0 to 255"),
        (np.zeros((2, 6, 4, 3)), "images must have the shape"),
        (np.zeros((2, 2, 72)), "images must have the shape"),
        (np.zeros((2, 72), bool), "must hold whole numbers or floats, not bool"),
    ],
)
def test_what_is_no_image_is_refused(images, sentence):
    with pytest.raises(ValueError, match=sentence):
        as_pixels(images, FORM)
