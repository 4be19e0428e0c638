"""Token shards in the format of FineWeb10B, memory-mapped, and their windows in shuffled batches.

A shard has a header of 256 little-endian int32 (magic, version, number of tokens, zeros), then its tokens as uint16.
Token 50256 begins each document.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt16

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count
from lipzoo.data import bpe, fineweb
from lipzoo.data.batches import ALL, Batch, Shuffle, Split, iterate
from lipzoo.data.config import AbstractDataConfig, Sizes
from lipzoo.data.download import cache_dir
from lipzoo.data.text import windows
from lipzoo.system.errors import UserError

if TYPE_CHECKING:
    import grain

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
VOCABULARY = 128 * -(-bpe.TOKENS // 128)
"""Rows of embedding and head: GPT-2's 50,257 tokens, filled up to 50,304 so that the matrices divide well."""
CHECKED_TOGETHER = 1 << 24
READ_AHEAD = 2
REMEDY = f"replace it by a whole one (those of {fineweb.FOLDER} are downloaded again once deleted)"

Shard = UInt16[np.ndarray, "_"]


def open_shard(path: Path) -> Shard:
    """The tokens of a shard, which stay on disk until they are used.

    **Raises:** UserError if the header, the length or a token is not as it should be. All tokens are read once for it.
    """
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", 3)
    if size < HEADER_BYTES or header[0] != MAGIC:
        raise UserError(f"{path} is not a token shard (it does not begin with a header of magic {MAGIC}): {REMEDY}")
    if header[1] != VERSION:
        raise UserError(f"{path} is a token shard of version {header[1]}, not {VERSION}: {REMEDY}")
    count = int(header[2])
    if size != HEADER_BYTES + 2 * count:
        stated = f"{count:,} tokens stated in its header ({HEADER_BYTES + 2 * count:,} bytes)"
        raise UserError(f"{path} has {size:,} bytes, which are not the {stated}: {REMEDY}")
    if count < 2:
        raise UserError(f"{path} has {count} tokens, too few to predict one from another: {REMEDY}")
    tokens = np.memmap(path, "<u2", "r", HEADER_BYTES)
    _check_range(path, tokens)
    return tokens


def _check_range(path: Path, tokens: Shard) -> None:
    for start in range(0, len(tokens), CHECKED_TOGETHER):
        chunk = tokens[start : start + CHECKED_TOGETHER]
        if chunk.max() >= bpe.TOKENS:
            wrong = start + int(np.argmax(chunk >= bpe.TOKENS))
            raise UserError(f"{path}: token {wrong:,} is {tokens[wrong]}, not 0 to {bpe.TOKENS - 1}: {REMEDY}")


def open_shards(folder: Path, part: str, most: int | None = None) -> list[Shard]:
    """The shards of the part `train` or `val`, by name; the first ones, at `most`."""
    paths = sorted(folder.glob(f"*_{part}_*.bin"))
    if not paths:
        raise UserError(
            f"{folder} holds no token shards *_{part}_*.bin: put them there, or choose another --data "
            f"(only {fineweb.FOLDER} is downloaded)"
        )
    return [open_shard(path) for path in paths[:most]]


class ShuffledWindows:
    """These `rows` of batch i of all windows of `length` + 1 tokens, the only ones that are read from disk.

    Windows begin `length` tokens apart, so that every token but a shard's first is a label once an epoch. They do not
    cross from shard to shard: what is left at the end of a shard, less than `length` tokens, is not used.
    """

    def __init__(
        self, shards: Sequence[Shard], length: int, batch_size: int, batches: int, seed: int, rows: slice = ALL
    ):
        self._shards = shards
        self._length = length
        self._first = np.cumsum([0, *(count_windows(shard, length) for shard in shards)])
        self._shuffle = Shuffle(int(self._first[-1]), batch_size, seed)
        self._batches = batches
        self._rows = rows

    def __repr__(self) -> str:
        shuffle = self._shuffle
        windows = f"{shuffle.examples} windows of {self._length} tokens"
        return f"ShuffledWindows({windows}, batches of {shuffle.batch_size}, seed {shuffle.seed})"

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> Batch:
        chosen = self._shuffle[index][self._rows]
        tokens = np.empty((len(chosen), self._length + 1), np.int32)
        for row, window in zip(tokens, chosen.tolist(), strict=True):
            shard = np.searchsorted(self._first, window, side="right") - 1
            start = (window - self._first[shard]) * self._length
            row[:] = self._shards[shard][start : start + self._length + 1]
        return {"input": tokens[:, :-1], "label": tokens[:, 1:]}


def count_windows(shard: Shard, length: int) -> int:
    """Windows of `length` tokens with a next token each."""
    return (len(shard) - 1) // length


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Shards to train on, and windows to test on."""

    shards: Sequence[Shard]
    test: Split
    window: int
    white: None = None

    @property
    def tests(self) -> dict[str, Split]:
        """What models are tested on, by the names of the metrics."""
        return {"val": self.test}

    def batches(self, *, batch_size: int, count: int, seed: int, rows: slice = ALL) -> "grain.DatasetIterator":
        """These `rows` of the first `count` batches of shuffled windows."""
        source = ShuffledWindows(self.shards, self.window, batch_size, count, seed, rows)
        return iterate(source, read_ahead=READ_AHEAD)


@options
@dataclasses.dataclass(frozen=True)
class TokensConfig(AbstractDataConfig):
    """The part of a recipe that describes token shards."""

    data: str = fineweb.FOLDER
    """Folder of the data cache with shards *_train_*.bin and *_val_*.bin; fineweb10B is downloaded into it."""
    batch_size: Count = 384
    """Windows a step, over all devices."""
    seq_len: Count = 1024
    """Tokens of a window."""
    train_shards: Count = 8
    """Training shards to use, at most: the first ones by name. FineWeb10B has 103 of 100 million tokens (200 MB)."""
    val_tokens: Count = 10_485_760
    """Tokens to predict in a validation, at most: the first ones."""

    @property
    def unit(self) -> tuple[str, int]:
        """What speed is counted in, and how many there are in an example."""
        return "tokens", self.seq_len

    @property
    def sizes(self) -> Sizes:
        """Tokens in, tokens out."""
        return Sizes(VOCABULARY, VOCABULARY)

    @property
    def example_bytes(self) -> int:
        """An int32 a token."""
        return 4 * self.seq_len

    def tokenizer(self) -> bpe.BPE:
        """GPT-2's."""
        return bpe.BPE()

    def load(self, seed: int) -> Tokens:
        """The shards, checked, downloaded first if they are FineWeb10B's and not in the cache."""
        if self.data == fineweb.FOLDER:
            fineweb.fetch_shards(self.train_shards)
        folder = cache_dir() / self.data
        train = open_shards(folder, "train", self.train_shards)
        count = sum(count_windows(shard, self.seq_len) for shard in train)
        if count < self.batch_size:
            raise UserError(
                f"{folder} has {count:,} windows of {self.seq_len:,} tokens to train on, too few for a batch of "
                f"{self.batch_size:,}: lower --batch-size or --seq-len, or add shards to the {len(train)} in use"
            )
        most = self.val_tokens + 1
        test = np.concatenate([shard[:most] for shard in open_shards(folder, "val")])[:most]
        return Tokens(train, windows(test.astype(np.int32), self.seq_len), self.seq_len)
