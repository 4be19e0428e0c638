"""Labelled images in memory, and their shuffled batches."""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike

from lipzoo.data.augment import Augment, Augmented
from lipzoo.data.batches import ALL, Batch, Shuffle, Split, iterate

if TYPE_CHECKING:
    import grain


class Form(NamedTuple):
    """What is known of a source of images without its data: (channels, height, width), largest pixel value, classes."""

    shape: tuple[int, int, int]
    white: int
    classes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A data set of images of `shape` (channels, height, width). Models see pixels divided by `white`: in [0, 1]."""

    train: Split
    test: Split
    white: int
    classes: int
    shape: tuple[int, int, int]
    augment: Augment | None = None

    @property
    def tests(self) -> dict[str, Split]:
        """What models are tested on, by the names of the metrics."""
        return {"val": self.test}

    def batches(self, *, batch_size: int, count: int, seed: int, rows: slice = ALL) -> "grain.DatasetIterator":
        """These `rows` of the first `count` batches of shuffled training images, changed at random if so asked."""
        return iterate(ShuffledBatches(self.train, batch_size, count, seed, self._augmented, rows))

    @functools.cached_property
    def _augmented(self) -> Augmented | None:
        return None if self.augment is None else Augmented(self.augment, self.train.input, self.white)


def as_pixels(images: ArrayLike, form: Form) -> Float[np.ndarray, "n pixels"]:
    """Images of a form as models see them: flat, channels first, in [0, 1].

    Whole numbers are pixel values from 0 to white; floats lie in [0, 1]. One image or many, flat, channels first,
    channels last, or without an axis for a single channel.

    **Raises:** ValueError if they have another shape, or values out of that range.
    """
    images = np.asarray(images)
    shape, white, _ = form
    channels, height, width = shape
    flat = math.prod(shape)
    layouts = [(flat,), shape, (height, width, channels), *([(height, width)] if channels == 1 else [])]
    layout = next((x for x in layouts if images.shape[-len(x) :] == x and images.ndim <= len(x) + 1), None)
    if layout is None:
        known = " or ".join(str(x) for x in dict.fromkeys(layouts))
        raise ValueError(f"images must have the shape {known}, or many of them, but have {images.shape}")
    many = images.reshape(-1, *layout)
    if layout == layouts[2] != shape:
        many = many.transpose(0, 3, 1, 2)
    return _to_unit(many.reshape(-1, flat), white)


def _to_unit(images: Shaped[np.ndarray, "n pixels"], white: int) -> Float[np.ndarray, "n pixels"]:
    whole = np.issubdtype(images.dtype, np.integer)
    if not (whole or np.issubdtype(images.dtype, np.floating)):
        raise ValueError(f"images must hold whole numbers or floats, not {images.dtype}")
    most = white if whole else 1
    low, high = (images.min(), images.max()) if images.size else (0, 0)
    if not (low >= 0 and high <= most):  # In this form NaN is refused as well.
        kind = f"whole numbers from 0 to {white}" if whole else "floats from 0 to 1"
        hint = "" if whole else f" (or whole numbers from 0 to {white})"
        raise ValueError(f"pixels must be {kind}{hint}, but lie between {low:g} and {high:g}")
    return images.astype(np.float32) / np.float32(most)


def randomize_labels(split: Split, fraction: float, classes: int, seed: int) -> Split:
    """`split` with a random `fraction` of its labels drawn anew (possibly the same ones)."""
    random = np.random.RandomState(seed)
    chosen = random.permutation(len(split.label))[: round(fraction * len(split.label))]
    label = split.label.copy()
    label[chosen] = random.randint(0, classes, len(chosen))
    return dataclasses.replace(split, label=label)


class ShuffledBatches:
    """These `rows` of batch i of shuffled images.

    A random-access source of whole batches: grain's own shuffle and batch work record by record, where one gather takes
    a fraction of the time (`benchmarks/cifar_step.py`).
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        batches: int,
        seed: int,
        augmented: Augmented | None = None,
        rows: slice = ALL,
    ):
        self._split = split
        self._batches = batches
        self._shuffle = Shuffle(len(split.label), batch_size, seed)
        self._augmented = augmented
        self._rows = rows

    def __repr__(self) -> str:
        shuffle = self._shuffle
        return f"ShuffledBatches({shuffle.examples} images, batches of {shuffle.batch_size}, seed {shuffle.seed})"

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> Batch:
        chosen = self._shuffle[index]
        if self._augmented is None:
            image = self._split.input[chosen[self._rows]]
        else:
            image = self._augmented.pick(chosen, [self._shuffle.seed, index, 1], self._rows)
        return {"input": image, "label": self._split.label[chosen[self._rows]]}
