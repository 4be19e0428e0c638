"""What a text model needs to know of its tokens."""

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int


@runtime_checkable
class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def size(self) -> int:
        """How many tokens there are; a model may have a few rows more, which only pad its arrays."""
        ...

    @property
    def end(self) -> int | None:
        """The token that stands between documents, if there is one."""
        ...

    @property
    def unit(self) -> str:
        """What tokens are called."""
        ...

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """The tokens of a text."""
        ...

    def prompt(self, text: str) -> Int[np.ndarray, " n"]:
        """What generation goes on from: the tokens of a text, which may be empty, after what begins a document."""
        ...

    def decode(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens in pieces, each as soon as it is known."""
        ...
