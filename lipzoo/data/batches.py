"""The stream of batches that training reads: in random access, so that a resumed run sees what it would have seen."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]
"""`input`: uint8 pixels (batch, pixels) or int32 tokens (batch, time); `label`: int32 (batch,) or (batch, time)."""

ALL = slice(None)
"""All rows of each batch. A process of several reads its own rows only; they are those of the whole batch."""


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


class Shuffle:
    """Which examples make up batch i of an endless stream: every epoch is a new permutation of them, and batches run
    across epochs.

    NumPy's RandomState has a frozen stream, so a batch is the same on every version and machine.
    """

    def __init__(self, examples: int, batch_size: int, seed: int):
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, index: int) -> Int[np.ndarray, " batch"]:
        position = index * self.batch_size + np.arange(self.batch_size)
        epoch, place = np.divmod(position, self.examples)
        return np.concatenate([self._permutation(e)[place[epoch == e]] for e in np.unique(epoch).tolist()])

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.RandomState([self.seed, epoch]).permutation(self.examples)


def iterate(source: Batches, *, read_ahead: int = 0) -> "grain.DatasetIterator":
    """Batches one after the other; the iterator's state is saved with a checkpoint and restored from it.

    A thread reads `read_ahead` batches beside the training; what is in memory needs none, it would only add latency.
    """
    import grain  # It takes a while, and mistakes on the command line are told without it.

    options = grain.ReadOptions(num_threads=min(read_ahead, 1), prefetch_buffer_size=read_ahead)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
