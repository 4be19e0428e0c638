"""What the part of a recipe that describes a model can be asked."""

import abc
import dataclasses
from typing import ClassVar

from lipzoo.data.config import Sizes
from lipzoo.theory.weight import Weight


@dataclasses.dataclass(frozen=True)
class AbstractModelConfig(abc.ABC):
    """The options of a family of models: a frozen dataclass, whose fields are those of the command line.

    **Attributes:**

    - `embeds`: whether there is an embedding.
    """

    embeds: ClassVar[bool] = False

    @abc.abstractmethod
    def parameters(self, sizes: Sizes) -> int:
        """The numbers in its matrices: no more than it has."""

    def conflict(self) -> str | None:
        """Which settings do not go together, in a sentence that names their flags, or None."""
        return None

    def misfit(self, sizes: Sizes) -> str | None:
        """Why there is no such model for data of these sizes, in a sentence that names the flag, or None."""
        return None

    def first_norm(self, weight: Weight) -> float:
        """An upper bound of a fresh weight's norm."""
        return 1.0

    def window_at(self, progress: float) -> int:
        """How many tokens attention looks back after a fraction `progress` < 1 of the run; 0 for all."""
        return 0

    def scores(self, length: int) -> int:
        """The attention scores of an example of so many tokens that are there at once."""
        return 0
