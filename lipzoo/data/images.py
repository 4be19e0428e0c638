"""Labelled images in memory, and the endless stream of shuffled batches that training reads."""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

Batch = dict[str, np.ndarray]
"""`input`: uint8 pixels (batch, pixels) or int32 tokens (batch, time); `label`: int32 (batch,) or (batch, time)."""


@runtime_checkable
class Batches(Protocol):
    """Batches in random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples with their labels: images as flat vectors of pixel values, or windows of tokens.

    `weight` says how much each label counts in a mean, by default all the same.
    """

    input: Shaped[np.ndarray, "n size"]
    label: Int[np.ndarray, "*labels"]
    weight: Float[np.ndarray, "*labels"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A data set of images of `shape` (channels, height, width). Models see pixels divided by `white`: in [0, 1]."""

    train: Split
    test: Split
    white: int
    classes: int
    shape: tuple[int, int, int]
    augment: "Augment | None" = None

    @property
    def tests(self) -> dict[str, Split]:
        """What models are tested on, by the names of the metrics."""
        return {"val": self.test}

    def batches(self, *, batch_size: int, count: int, seed: int) -> grain.DatasetIterator:
        """The first `count` batches of shuffled training images, changed at random if so asked."""
        return iterate(ShuffledBatches(self.train, batch_size, count, seed, self.augment))


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training images of `shape`: a random half is mirrored, and each is moved by up to `shift`
    pixels. What moves in is the image's edge, repeated.
    """

    shape: tuple[int, int, int]
    flip: bool = False
    shift: int = 0

    def windows(self, image: UInt8[np.ndarray, "n pixels"]) -> UInt8[np.ndarray, "n c shifts shifts h w"]:
        """Every image in every place: a view of the images padded once, so that a batch is a single gather."""
        margin = (self.shift, self.shift)
        padded = np.pad(image.reshape(-1, *self.shape), ((0, 0), (0, 0), margin, margin), mode="edge")
        return np.lib.stride_tricks.sliding_window_view(padded, self.shape[1:], axis=(2, 3))

    def pick(
        self, windows: UInt8[np.ndarray, "n c shifts shifts h w"], chosen: Int[np.ndarray, " batch"], seed: list[int]
    ) -> UInt8[np.ndarray, "batch pixels"]:
        """The chosen images, each in a random place, half of them mirrored."""
        random = np.random.RandomState(seed)
        down, right = random.randint(0, 2 * self.shift + 1, (2, len(chosen)))
        image = windows[chosen, :, down, right]
        if self.flip:
            half = random.rand(len(chosen)) < 0.5
            image[half] = image[half, ..., ::-1]
        return image.reshape(len(chosen), -1)


def randomize_labels(split: Split, fraction: float, classes: int, seed: int) -> Split:
    """`split` with a random `fraction` of its labels drawn anew (possibly the same ones)."""
    random = np.random.RandomState(seed)
    chosen = random.permutation(len(split.label))[: round(fraction * len(split.label))]
    label = split.label.copy()
    label[chosen] = random.randint(0, classes, len(chosen))
    return dataclasses.replace(split, label=label)


class ShuffledBatches:
    """Batch i of an endless stream: every epoch is a new permutation, and batches run across epochs.

    A random-access source of whole batches: grain's own shuffle and batch work record by record, where one gather takes
    a fraction of the time (`benchmarks/cifar_step.py`). NumPy's RandomState has a frozen stream, so a batch is the
    same on every version and machine.
    """

    def __init__(self, split: Split, batch_size: int, batches: int, seed: int, augment: Augment | None = None):
        self._split = split
        self._batch_size = batch_size
        self._batches = batches
        self._seed = seed
        self._augment = augment
        self._windows = augment.windows(split.input) if augment else None
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __repr__(self) -> str:
        return f"ShuffledBatches({len(self._split.label)} images, batches of {self._batch_size}, seed {self._seed})"

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> Batch:
        position = index * self._batch_size + np.arange(self._batch_size)
        epoch, place = np.divmod(position, len(self._split.label))
        chosen = np.concatenate([self._permutation(e)[place[epoch == e]] for e in np.unique(epoch).tolist()])
        if self._augment is None or self._windows is None:
            image = self._split.input[chosen]
        else:
            image = self._augment.pick(self._windows, chosen, [self._seed, index, 1])
        return {"input": image, "label": self._split.label[chosen]}

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.RandomState([self._seed, epoch]).permutation(len(self._split.label))


def iterate(source: Batches) -> grain.DatasetIterator:
    """Batches one after the other; the iterator's state is saved with a checkpoint and restored from it."""
    options = grain.ReadOptions(num_threads=0)  # Everything is in memory: threads would only add latency.
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
