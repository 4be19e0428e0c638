"""What the part of a recipe that describes data can be asked, and what data can."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from lipzoo.data.batches import ALL, Split
from lipzoo.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import grain


class Sizes(NamedTuple):
    """What a model has to fit.

    - `inputs`: the size of what goes into it: pixels, or tokens that there are.
    - `classes`: of its logits.
    - `shape`: of one image, (channels, height, width); empty for text.
    """

    inputs: int
    classes: int
    shape: tuple[int, ...] = ()


@runtime_checkable
class Data(Protocol):
    """Examples in memory or in files, split into those to train on and those to test on."""

    @property
    def tests(self) -> Mapping[str, Split]:
        """What models are tested on, by the names of the metrics; `val` is the whole test split."""
        ...

    def batches(self, *, batch_size: int, count: int, seed: int, rows: slice = ALL) -> "grain.DatasetIterator":
        """These `rows` of the first `count` batches to train on."""
        ...


@dataclasses.dataclass(frozen=True)
class AbstractDataConfig(abc.ABC):
    """The options of a kind of data: a frozen dataclass, whose fields are those of the command line.

    **Attributes:**

    - `data`: the name of the source. `batch_size`: examples a step, over all devices.
    """

    data: str
    batch_size: int

    @property
    @abc.abstractmethod
    def unit(self) -> tuple[str, int]:
        """What speed is counted in, and how many there are in an example."""

    @property
    @abc.abstractmethod
    def sizes(self) -> Sizes:
        """What a model has to fit; of a configuration that is complete."""

    @property
    @abc.abstractmethod
    def example_bytes(self) -> int:
        """The memory of an example in a batch."""

    @property
    def white(self) -> int | None:
        """The pixel value that models see as 1; None for tokens."""
        return None

    @abc.abstractmethod
    def load(self, seed: int) -> Data:
        """The data themselves. Raises UserError, saying what to do, where they cannot be had."""

    def complete(self) -> Any:
        """This with what has to be read from the data before a model can be built."""
        return self

    def conflict(self) -> str | None:
        """Which settings do not go together, in a sentence that names their flags, or None."""
        return None

    def tokenizer(self) -> Tokenizer | None:
        """Text to tokens and back; None for what is no text."""
        return None
