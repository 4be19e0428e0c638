"""Rows of batches: what the processes of a run read together is what one process reads alone."""

import itertools

import numpy as np
import pytest

from lipzoo.data import Augment, Images, Split, Text, Tokens

RANDOM = np.random.default_rng(0)
IMAGES = Split(RANDOM.integers(0, 256, (50, 24), np.uint8), np.arange(50, dtype=np.int32))
WINDOWS = Split(np.zeros((2, 4), np.int32), np.zeros((2, 4), np.int32))
SHARDS = tuple(RANDOM.integers(0, 50257, size, np.uint16) for size in (90, 3, 70))
SOURCES = {
    "images": Images(IMAGES, IMAGES, white=255, classes=50, shape=(1, 4, 6)),
    "changed images": Images(IMAGES, IMAGES, 255, 50, (1, 4, 6), Augment((1, 4, 6), flip=True, shift=2)),
    "text": Text(RANDOM.integers(0, 9, 100).astype(np.int32), WINDOWS, window=4),
    "tokens": Tokens(SHARDS, WINDOWS, window=4),
}
CUTS = [(0, 16), (0, 8, 16), (0, 3, 3, 16), (0, 4, 8, 12, 16)]


def batches(source, rows=slice(None)):
    return SOURCES[source].batches(batch_size=16, count=8, seed=5, rows=rows)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("source", SOURCES)
def test_slices_together_are_the_whole_batch(source, cuts):
    slices = [slice(*ends) for ends in itertools.pairwise(cuts)]
    parts = zip(*(batches(source, rows) for rows in slices), strict=True)
    for whole, part in zip(batches(source), parts, strict=True):
        assert len(whole["label"]) == 16
        for name, value in whole.items():
            np.testing.assert_array_equal(value, np.concatenate([rows[name] for rows in part]))
            assert all(rows[name].dtype == value.dtype for rows in part)


@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_goes_on_from_its_state_from_wherever_it_was(source):
    stream = batches(source, slice(4, 8))
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    assert state == {"next_index": 3}
    rest = list(stream)
    for other in (batches(source, slice(4, 8)), stream):
        other.set_state(state)
        np.testing.assert_equal(list(other), rest)
    assert len(rest) == 5
