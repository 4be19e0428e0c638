"""The part of a recipe that describes images."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count, Fraction, Range
from lipzoo.data import cifar10, digits
from lipzoo.data.config import AbstractDataConfig, Sizes
from lipzoo.data.images import Augment, Form, Images, as_pixels, randomize_labels


class ImageSource(NamedTuple):
    """What loads images, and what is known of them before, so that a model can be built and run without them."""

    load: Callable[[], Images]
    form: Form


SOURCES: dict[str, ImageSource] = {
    "digits": ImageSource(digits.load_digits, digits.FORM),
    "cifar10": ImageSource(cifar10.load_cifar10, cifar10.FORM),
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
    """Where images come from: digits is embedded, cifar10 is downloaded into the cache."""
    batch_size: Count = 512
    """Images a step, over all devices."""
    random_flip: bool = False
    """Mirror a random half of each training batch left to right."""
    random_shift: Annotated[int, Range(0, 7)] = 0
    """Move each training image by up to so many pixels in each direction."""
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

    def load(self, seed: int) -> Images:
        """The images, with labels randomized and random changes as asked for."""
        images = SOURCES[self.data].load()
        if self.random_flip or self.random_shift:
            augment = Augment(images.shape, self.random_flip, self.random_shift)
            images = dataclasses.replace(images, augment=augment)
        if not self.randomize_labels:
            return images
        train = randomize_labels(images.train, self.randomize_labels, images.classes, seed)
        return dataclasses.replace(images, train=train)
