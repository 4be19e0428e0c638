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


def image_head(
    key: PRNGKeyArray, shape: tuple[int, int], head: Head, zero_init: bool, cap: float, share: float
) -> Weight:
    """A matrix of this shape, (classes, features), that starts at zero or with orthogonal rows."""
    init = "zero" if zero_init else "orthogonal"
    norm = 1.0 if head == "matrix" else 1 / math.sqrt(shape[0])  # That of each row is √out times as large.
    weight = fresh(key, shape, name="head", place="head", cap=cap * norm, share=share, init=init)
    return dataclasses.replace(weight, geometry=DENSE if head == "matrix" else SEPARATE, cap=cap)
