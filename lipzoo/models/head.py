"""The last matrix of networks of images."""

import dataclasses
import math
from typing import Literal

from jaxtyping import PRNGKeyArray

from lipzoo.layers.init import fresh
from lipzoo.theory.geometry import DENSE, SEPARATE
from lipzoo.theory.weight import Weight

Head = Literal["matrix", "rows"]
"""What is held under its cap: the whole, or each of its rows by itself."""
BIAS_MASS = 1 / 30
"""Of a bias, where a matrix has 1. Muon moves it by a full step however small its gradient: on CIFAR-10 one epoch of a
ShiftNet with biases of mass 1, 1/10, 1/30 and without ended at 33.6, 42.4, 43.2 and 43.3% certified at 36/255."""


def image_head(
    key: PRNGKeyArray, shape: tuple[int, int], head: Head, zero_init: bool, cap: float, share: float
) -> Weight:
    """A matrix of this shape, (classes, features), that starts at zero or with orthogonal rows."""
    init = "zero" if zero_init else "orthogonal"
    norm = 1.0 if head == "matrix" else 1 / math.sqrt(shape[0])  # That of each row is √out times as large.
    weight = fresh(key, shape, name="head", place="head", cap=cap * norm, share=share, init=init)
    return dataclasses.replace(weight, geometry=DENSE if head == "matrix" else SEPARATE, cap=cap)
