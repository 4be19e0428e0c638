"""The part of a recipe that describes images."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count, Fraction, Range
from lipzoo.data import cifar10, digits
from lipzoo.data.images import Augment, Form, Images, as_pixels, randomize_labels

Source = Literal["digits", "cifar10"]
SOURCES: Mapping[Source, Callable[[], Images]] = {"digits": digits.load_digits, "cifar10": cifar10.load_cifar10}
FORMS: Mapping[Source, Form] = {"digits": digits.FORM, "cifar10": cifar10.FORM}
"""What is known of each source without its data, so that a model can be built and run without them."""


@options
@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The part of a recipe that describes the data."""

    data: Source = "digits"
    """Where images come from: digits is embedded, cifar10 is downloaded into the cache."""
    batch_size: Count = 512
    """Images a step, over all devices."""
    random_flip: bool = False
    """Mirror a random half of each training batch left to right."""
    random_shift: Annotated[int, Range(0, 7)] = 0
    """Move each training image by up to so many pixels in each direction."""
    randomize_labels: Fraction = 0.0
    """Fraction of the training labels that is replaced by random ones."""

    def conflict(self) -> None:
        """All settings go together."""

    @property
    def unit(self) -> tuple[str, int]:
        """What speed is counted in, and how many there are in an example."""
        return "images", 1

    def complete(self) -> "DataConfig":
        """This: nothing has to be read from the data before a model can be built."""
        return self

    @property
    def sizes(self) -> tuple[int, int]:
        """Pixels, classes."""
        form = FORMS[self.data]
        return math.prod(form.shape), form.classes

    @property
    def white(self) -> int:
        """The pixel value that models see as 1."""
        return FORMS[self.data].white

    def as_pixels(self, images: ArrayLike) -> Float[np.ndarray, "n pixels"]:
        """Images of this source as models see them (see `lipzoo.data.images.as_pixels`)."""
        return as_pixels(images, FORMS[self.data])

    def tokenizer(self) -> None:
        """Images have no tokens."""

    def load(self, seed: int) -> Images:
        """The images, with labels randomized and random changes as asked for."""
        images = SOURCES[self.data]()
        if self.random_flip or self.random_shift:
            augment = Augment(images.shape, self.random_flip, self.random_shift)
            images = dataclasses.replace(images, augment=augment)
        if not self.randomize_labels:
            return images
        train = randomize_labels(images.train, self.randomize_labels, images.classes, seed)
        return dataclasses.replace(images, train=train)
