"""The part of a recipe that describes images."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count, Fraction, Range, Whole
from lipzoo.data import cifar, digits
from lipzoo.data.augment import Augment
from lipzoo.data.config import AbstractDataConfig, Sizes
from lipzoo.data.images import Form, Images, as_pixels, randomize_labels


class ImageSource(NamedTuple):
    """What loads images, and what is known of them before, so that a model can be built and run without them."""

    load: Callable[[], Images]
    form: Form


SOURCES: dict[str, ImageSource] = {
    "digits": ImageSource(digits.load_digits, digits.FORM),
    "cifar10": ImageSource(cifar.load_cifar10, cifar.CIFAR10.form),
    "cifar100": ImageSource(cifar.load_cifar100, cifar.CIFAR100.form),
}

if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(SOURCES)]


@options
@dataclasses.dataclass(frozen=True)
class DataConfig(AbstractDataConfig):
    """The part of a recipe that describes the data."""

    data: SourceName = "digits"
    """Where images come from: digits is embedded, cifar10 and cifar100 are downloaded into the cache."""
    batch_size: Count = 512
    """Images a step, over all devices."""
    random_flip: bool = False
    """Mirror a random half of each training batch left to right."""
    random_shift: Annotated[int, Range(0, 7)] = 0
    """Move each training image by up to so many pixels in each direction."""
    rand_augment: Annotated[int, Range(0, 8)] = 0
    """Change each training image by so many random operations: tones, shears, translations, rotations (RandAugment)."""
    rand_augment_size: Annotated[int, Range(0, 10)] = 5
    """Strength of the operations of --rand-augment."""
    cutout: Whole = 0
    """Cover a random square of each training image, with sides of so many pixels, with the mean colour."""
    randomize_labels: Fraction = 0.0
    """Fraction of the training labels that is replaced by random ones."""

    @property
    def unit(self) -> tuple[str, int]:
        """What speed is counted in, and how many there are in an example."""
        return "images", 1

    @property
    def sizes(self) -> Sizes:
        """Pixels, classes, shape."""
        form = SOURCES[self.data].form
        return Sizes(math.prod(form.shape), form.classes, form.shape)

    @property
    def example_bytes(self) -> int:
        """A byte a pixel."""
        return self.sizes[0]

    @property
    def white(self) -> int:
        """The pixel value that models see as 1."""
        return SOURCES[self.data].form.white

    def as_pixels(self, images: ArrayLike) -> Float[np.ndarray, "n pixels"]:
        """Images of this source as models see them (see `lipzoo.data.images.as_pixels`)."""
        return as_pixels(images, SOURCES[self.data].form)

    def conflict(self) -> str | None:
        """Why images have no room for the changes, or None."""
        _, height, width = SOURCES[self.data].form.shape
        if self.cutout > min(height, width):
            return f"--cutout {self.cutout} is more than the {height}×{width} pixels of {self.data}"
        return None

    def load(self, seed: int) -> Images:
        """The images, with labels randomized and random changes as asked for."""
        images = SOURCES[self.data].load()
        augment = Augment(
            images.shape, self.random_flip, self.random_shift, self.cutout, self.rand_augment, self.rand_augment_size
        )
        if self.random_flip or self.random_shift or self.cutout or self.rand_augment:
            images = dataclasses.replace(images, augment=augment)
        if not self.randomize_labels:
            return images
        train = randomize_labels(images.train, self.randomize_labels, images.classes, seed)
        return dataclasses.replace(images, train=train)
