"""Random changes of images: the same for the same seed and index, as they always were, and each what it says."""

import hashlib

import numpy as np
import pytest

from lipzoo.data import Augment, DataConfig, Images, Split
from lipzoo.data.augment import Augmented, cut_out
from lipzoo.data.rand_augment import OPERATIONS

SHAPE = (3, 9, 7)
ALL_CHANGES = {"flip": True, "shift": 2, "cutout": 4, "operations": 2, "size": 7}


def made_up(**changes):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (300, 3 * 9 * 7)).astype(np.uint8)
    split = Split(image, random.randint(0, 10, 300).astype(np.int32))
    return Images(split, split, 255, 10, SHAPE, Augment(SHAPE, **changes) if changes else None)


STORED = [
    ({}, "e1a418a54a3a34a8ba85f64c3396d431f2e9881b70bfcef9e412d552224eb01d"),
    ({"flip": True}, "ce5c17b075b5385e3a694e3c4e67554a435e555a79549a7c45b8ed688bfd347e"),
    ({"shift": 2}, "03572256f68c1398c9e7d29f27492ad08ef1d1ec947ab0160861606644f75c75"),
    ({"flip": True, "shift": 3}, "03706d721c96373c03b2b8df64fbb3409295e0d8068af004fdd59f17d708c143"),
    (ALL_CHANGES, "51998120e9510470e9d0fb2a24fa8fab921215e32f5a99a4ee1c9c5b353e4bd8"),
]
"""The first four are as old as flips and shifts: runs that were stored then go on with the same images."""


@pytest.mark.parametrize(("changes", "digest"), STORED, ids=[str(list(c)) for c, _ in STORED])
def test_batches_of_a_seed_are_what_they_always_were(changes, digest):
    found = hashlib.sha256()
    for batch in made_up(**changes).batches(batch_size=64, count=7, seed=5):
        found.update(batch["input"].tobytes() + batch["label"].tobytes())
    assert found.hexdigest() == digest


def test_flips_and_shifts_are_the_same_with_and_without_what_comes_after_them():
    """A square of one pixel leaves all others where they were."""
    plain = next(made_up(flip=True, shift=2).batches(batch_size=64, count=1, seed=5))["input"]
    covered = next(made_up(flip=True, shift=2, cutout=1).batches(batch_size=64, count=1, seed=5))["input"]
    assert ((plain != covered).sum(1) <= 3).all()
    assert (plain != covered).any(1).mean() > 0.9


def test_a_stream_that_is_resumed_goes_on_with_the_same_images():
    stream = made_up(**ALL_CHANGES).batches(batch_size=50, count=9, seed=1)
    for _ in range(4):
        next(stream)
    state, rest = stream.get_state(), [batch["input"] for batch in stream]
    again = made_up(**ALL_CHANGES).batches(batch_size=50, count=9, seed=1)
    again.set_state(state)
    np.testing.assert_array_equal([batch["input"] for batch in again], rest)
    assert len(rest) == 5
    assert not np.array_equal(rest[0], rest[1])


@pytest.mark.parametrize("rows", [slice(0, 8), slice(8, 31), slice(31, 32), slice(32, 32)], ids=str)
def test_a_process_sees_its_rows_of_the_whole_batch(rows):
    images = made_up(**ALL_CHANGES)
    whole = next(images.batches(batch_size=32, count=1, seed=2))
    part = next(images.batches(batch_size=32, count=1, seed=2, rows=rows))
    np.testing.assert_array_equal(part["input"], whole["input"][rows])
    np.testing.assert_array_equal(part["label"], whole["label"][rows])


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_a_square_is_cut_around_its_centre_and_clipped(side):
    """Against the loops of the paper's code, which knows even sides alone."""
    centre = np.stack(np.mgrid[:9, :7], -1).reshape(-1, 2)
    fill = np.array([1, 2, 3], np.uint8)
    expected = np.full((63, *SHAPE), 200, np.uint8)
    for image, (y, x) in zip(expected, centre, strict=True):
        top, left = y - side // 2, x - side // 2
        for channel in range(3):
            image[channel, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = fill[channel]
    image = np.full((63, *SHAPE), 200, np.uint8)
    cut_out(image, centre, side, fill)
    np.testing.assert_array_equal(image, expected)


def test_squares_lie_anywhere_and_have_the_mean_colour_of_the_training_images():
    image = np.full((400, *SHAPE), 0, np.uint8)
    image[:, 1], image[:, 2] = 200, 255
    image[0, 0], image[0, 2] = 80, 0  # Means of 80/400 and of 255 · 399/400.
    cut = Augmented(Augment(SHAPE, cutout=2, shift=1), image.reshape(400, -1)).pick(np.arange(1, 400), [0])
    cut = cut.reshape(-1, *SHAPE)
    assert set(np.unique(cut[:, 2])) == {254, 255}
    square = cut[:, 2] == 254
    assert set(square.sum((1, 2))) == {1, 2, 4}
    assert square.any(0).all()
    assert (cut[:, 0] == 0).all()
    assert (cut[:, 1] == 200).all()


UNDIRECTED = ("identity", "autocontrast", "equalize", "posterize", "solarize")


def test_operations_are_drawn_alike_and_change_images_by_turns():
    """Of all 13 operations each with its own result on this image."""
    image = np.random.RandomState(3).randint(40, 200, (1, 3 * 9 * 7)).astype(np.uint8)
    image = np.repeat(image, 4000, 0)
    changed = Augmented(Augment(SHAPE, operations=1, size=10), image).pick(np.arange(4000), [0])
    _, counts = np.unique(changed, axis=0, return_counts=True)
    ways = [1 if name in UNDIRECTED else 2 for name in OPERATIONS]
    expected = sorted(4000 / len(OPERATIONS) / count for count in ways for _ in range(count))
    np.testing.assert_allclose(sorted(counts), expected, rtol=0.3)


@pytest.mark.parametrize("changes", [{"cutout": 8}, {"rand_augment": 8, "rand_augment_size": 10}, {"rand_augment": 2}])
def test_digits_take_all_changes_and_stay_digits(changes):
    images, unchanged = DataConfig(**changes).load(seed=0), DataConfig().load(seed=0)
    batch = next(images.batches(batch_size=500, count=1, seed=0))["input"]
    assert batch.max() <= images.white
    assert (batch != next(unchanged.batches(batch_size=500, count=1, seed=0))["input"]).any()
    np.testing.assert_array_equal(images.test.input, unchanged.test.input)
