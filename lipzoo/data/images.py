"""Labelled images in memory, and the endless stream of shuffled batches that training reads."""

import dataclasses
import functools

import grain
import numpy as np
from jaxtyping import Int, UInt8

Batch = dict[str, np.ndarray]
"""`image`: uint8 (batch, pixels); `label`: int32 (batch,)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images as flat vectors of pixel values, with their classes."""

    image: UInt8[np.ndarray, "n pixels"]
    label: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A data set of images whose rows are `width` pixels long. Models see pixels divided by `white`: in [0, 1]."""

    train: Split
    test: Split
    white: int
    classes: int
    width: int


def randomize_labels(split: Split, fraction: float, classes: int, seed: int) -> Split:
    """`split` with a random `fraction` of its labels drawn anew (possibly the same ones)."""
    random = np.random.RandomState(seed)
    chosen = random.permutation(len(split.label))[: round(fraction * len(split.label))]
    label = split.label.copy()
    label[chosen] = random.randint(0, classes, len(chosen))
    return dataclasses.replace(split, label=label)


class ShuffledBatches:
    """Batch i of an endless stream: every epoch is a new permutation, and batches run across epochs.

    With `mirror`, the length of a row of pixels, a random half of the images is mirrored left to right.

    A random-access source of whole batches: grain's own shuffle and batch work record by record, 4 to 9 ms for 512
    CIFAR images where this gather takes 0.3 (`benchmarks/`). NumPy's RandomState has a frozen stream, so a batch is the
    same on every version and machine.
    """

    def __init__(self, split: Split, batch_size: int, batches: int, seed: int, mirror: int | None = None):
        self._split = split
        self._batch_size = batch_size
        self._batches = batches
        self._seed = seed
        self._mirror = mirror
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __repr__(self) -> str:
        return f"ShuffledBatches({len(self._split.label)} images, batches of {self._batch_size}, seed {self._seed})"

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> Batch:
        position = index * self._batch_size + np.arange(self._batch_size)
        epoch, place = np.divmod(position, len(self._split.label))
        chosen = np.concatenate([self._permutation(e)[place[epoch == e]] for e in np.unique(epoch).tolist()])
        image = self._split.image[chosen]
        if self._mirror is not None:
            half = np.random.RandomState([self._seed, index, 1]).rand(len(image)) < 0.5
            rows = image[half].reshape(-1, self._mirror)
            image[half] = rows[:, ::-1].reshape(-1, image.shape[1])
        return {"image": image, "label": self._split.label[chosen]}

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.RandomState([self._seed, epoch]).permutation(len(self._split.label))


def batches(
    split: Split, *, batch_size: int, count: int, seed: int, mirror: int | None = None
) -> grain.DatasetIterator:
    """The first `count` batches; the iterator's state is saved with a checkpoint and restored from it."""
    source = ShuffledBatches(split, batch_size, count, seed, mirror)
    options = grain.ReadOptions(num_threads=0)  # Everything is in memory: threads would only add latency.
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
