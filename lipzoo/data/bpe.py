"""The byte-pair encoding of GPT-2 (Radford et al. 2019), by tiktoken."""

import codecs
import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from lipzoo.data.download import cache_dir, fetch

if TYPE_CHECKING:
    from tiktoken import Encoding

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
FOLDER = "gpt2_bpe"
SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
TOKENS = 50257
END = 50256
"""Begins each document, and so ends the one before."""
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pieces inside which bytes are merged: endings of English words, letters, digits, signs, white space."""


@dataclasses.dataclass(frozen=True)
class BPE:
    """GPT-2's tokenizer. Its files are downloaded into the cache if they are not there."""

    size: int = TOKENS
    end: int = END
    unit: str = "tokens"

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """The tokens of a text, in which "<|endoftext|>" is a word like others."""
        return np.array(load_encoding().encode_ordinary(text), np.int32)

    def prompt(self, text: str) -> Int[np.ndarray, " n"]:
        """A document that begins with the text."""
        return np.concatenate([np.array([END], np.int32), self.encode(text)])

    def decode(self, tokens: Iterable[int]) -> Iterator[str]:
        """Characters, each once its bytes are there; bytes that are no UTF-8 become �, ends of documents nothing."""
        encoding = load_encoding()
        pieces = (encoding.decode_single_token_bytes(token) for token in tokens if token != END)
        return codecs.iterdecode(pieces, "utf-8", errors="replace")


@functools.cache
def load_encoding() -> "Encoding":
    """tiktoken's encoder, built from the files in the cache.

    **Raises:** UserError if a file is damaged, or missing where there is no network.
    """
    folder = cache_dir() / FOLDER
    for name, sha256 in SHA256.items():
        fetch(f"{URL}/{name}", folder / name, sha256)
    from tiktoken import Encoding  # Takes a while to import, and is used by this source alone.
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    with _no_copies():
        ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return Encoding("gpt2", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})


@contextlib.contextmanager
def _no_copies() -> Iterator[None]:
    """Keeps tiktoken from copying the files that it reads into a folder of temporary files."""
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before
