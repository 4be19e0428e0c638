"""Text by characters: tiny Shakespeare and two embedded texts; random windows to train on, all the rest to test on."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count
from lipzoo.data.batches import ALL, Batch, Split, iterate
from lipzoo.data.config import AbstractDataConfig, Sizes
from lipzoo.data.download import cache_dir, fetch
from lipzoo.data.synthetic import load_synthetic
from lipzoo.system.errors import UserError

if TYPE_CHECKING:
    import grain

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_FRACTION = 0.9
PUBLISHED_WINDOWS = 20 * 64

SHAKESPEARE = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The characters of tiny Shakespeare, known without the text, so that a recipe can be checked before a download."""


def load_shakespeare() -> str:
    """The 1,115,394 characters of Karpathy's tiny Shakespeare, downloaded into the cache if they are not there."""
    return fetch(URL, cache_dir() / "tinyshakespeare" / "input.txt", SHA256).decode()


def load_pydoc() -> str:
    """The reference text of Python's own `pydoc_data.topics`; differs a little from version to version of Python."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


class TextSource(NamedTuple):
    """What loads a text, and its characters if they are known before."""

    load: Callable[[], str]
    alphabet: str = ""


TEXTS: dict[str, TextSource] = {
    "shakespeare": TextSource(load_shakespeare, SHAKESPEARE),
    "pydoc": TextSource(load_pydoc),
    "synthetic": TextSource(load_synthetic),
}

if TYPE_CHECKING:
    TextName = str
else:
    TextName = Literal[tuple(TEXTS)]


@dataclasses.dataclass(frozen=True)
class Characters:
    """The tokenizer of a text by characters: each character's place in the alphabet."""

    alphabet: str
    end: None = None
    unit: str = "characters"

    @property
    def size(self) -> int:
        """All tokens are characters."""
        return len(self.alphabet)

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Raises UserError naming the characters that the alphabet lacks."""
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown:
            raise UserError(f"the model does not know the characters {''.join(unknown)!r}; it knows {self.alphabet!r}")
        table = {character: index for index, character in enumerate(self.alphabet)}
        return np.array([table[character] for character in text], np.int32)

    def prompt(self, text: str) -> Int[np.ndarray, " n"]:
        """Without a text it is the first character, in most texts a new line."""
        return self.encode(text or self.alphabet[0])

    def decode(self, tokens: Iterable[int]) -> Iterator[str]:
        """A character for each token."""
        return (self.alphabet[token] for token in tokens)


def windows(tokens: Int[np.ndarray, " n"], length: int) -> Split:
    """All tokens but the first as labels of non-overlapping windows; the last one is filled up with weight 0."""
    count = -(-(len(tokens) - 1) // length)
    padded = np.zeros(count * length + 1, np.int32)
    padded[: len(tokens)] = tokens
    weight = np.arange(count * length) < len(tokens) - 1
    shape = (count, length)
    return Split(padded[:-1].reshape(shape), padded[1:].reshape(shape), weight.astype(np.float32).reshape(shape))


class RandomWindows:
    """These `rows` of batch i of an endless stream: windows at random places, the same on every version and machine."""

    def __init__(
        self, tokens: Int[np.ndarray, " n"], length: int, batch_size: int, batches: int, seed: int, rows: slice = ALL
    ):
        self._tokens = tokens
        self._length = length
        self._batch_size = batch_size
        self._batches = batches
        self._seed = seed
        self._rows = rows

    def __repr__(self) -> str:
        windows = f"{self._batch_size} windows of {self._length}"
        return f"RandomWindows({len(self._tokens)} tokens, {windows}, seed {self._seed})"

    def __len__(self) -> int:
        return self._batches

    def __getitem__(self, index: int) -> Batch:
        random = np.random.RandomState([self._seed, index])
        first = random.randint(0, len(self._tokens) - self._length, self._batch_size)
        chosen = self._tokens[first[self._rows, None] + np.arange(self._length + 1)]
        return {"input": chosen[:, :-1], "label": chosen[:, 1:]}


def published_window(tokens: Int[np.ndarray, " n"], length: int) -> Split:
    """The windows on which Newhouse et al. 2025 report: those that begin at the first 20·64 tokens of the test split.

    They overlap, and see no more than its first 1,280 + `length` tokens.
    """
    chosen = tokens[np.arange(PUBLISHED_WINDOWS)[:, None] + np.arange(length + 1)]
    return Split(chosen[:, :-1], chosen[:, 1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text as tokens, split once: the first 90% to train on, the rest whole as `test`."""

    tokens: Int[np.ndarray, " n"]
    test: Split
    window: int
    published: Split | None = None
    white: None = None

    @property
    def tests(self) -> dict[str, Split]:
        """What models are tested on, by the names of the metrics."""
        return {"val": self.test} | ({} if self.published is None else {"published_window": self.published})

    def batches(self, *, batch_size: int, count: int, seed: int, rows: slice = ALL) -> "grain.DatasetIterator":
        """These `rows` of the first `count` batches of random windows."""
        return iterate(RandomWindows(self.tokens, self.window, batch_size, count, seed, rows))


@options
@dataclasses.dataclass(frozen=True)
class TextConfig(AbstractDataConfig):
    """The part of a recipe that describes a text."""

    data: TextName = "pydoc"
    """Where the text comes from: pydoc and synthetic are embedded, shakespeare is downloaded into the cache."""
    batch_size: Count = 64
    """Windows a step, over all devices."""
    seq_len: Count = 256
    """Characters of a window."""
    alphabet: str = ""
    """Characters that the model knows, in the order of their tokens; by default those of the text."""

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        if repeated := sorted({c for c in self.alphabet if self.alphabet.count(c) > 1}):
            return f"--alphabet holds {''.join(repeated)!r} more than once: each character is one token"
        return None

    @property
    def unit(self) -> tuple[str, int]:
        """What speed is counted in, and how many there are in an example."""
        return "tokens", self.seq_len

    def complete(self) -> "TextConfig":
        """This with the alphabet of the text, so that a checkpoint holds its own tokenizer."""
        if self.alphabet:
            return self
        source = TEXTS[self.data]
        return dataclasses.replace(self, alphabet=source.alphabet or "".join(sorted(set(source.load()))))

    @property
    def sizes(self) -> Sizes:
        """Tokens in, tokens out."""
        return Sizes(len(self.alphabet), len(self.alphabet))

    @property
    def example_bytes(self) -> int:
        """An int32 a token."""
        return 4 * self.seq_len

    def tokenizer(self) -> Characters:
        """Characters to tokens and back."""
        return Characters(self.complete().alphabet)

    def load(self, seed: int) -> Text:
        """The tokens of the text."""
        tokens = self.tokenizer().encode(TEXTS[self.data].load())
        train, test = np.split(tokens, [int(TRAIN_FRACTION * len(tokens))])
        if len(train) <= self.seq_len:
            raise UserError(f"--seq-len {self.seq_len} is longer than the text of {len(train)} characters")
        published = None
        if self.data == "shakespeare" and len(test) > PUBLISHED_WINDOWS + self.seq_len:
            published = published_window(test, self.seq_len)
        return Text(train, windows(test, self.seq_len), self.seq_len, published)
