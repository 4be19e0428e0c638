"""GPT-2's byte pairs: known tokens, round trips, characters in parts, nothing copied, damage told."""

import os
import tempfile

import numpy as np
import pytest

from lipzoo.data import bpe
from lipzoo.data.bpe import BPE, END
from lipzoo.system.errors import UserError

KNOWN = {
    "Hello world": [15496, 995],
    "The history of": [464, 2106, 286],
    "I'll don't": [40, 1183, 836, 470],
}
TEXTS = [
    "",
    " ",
    "a  b\n\n c\t",
    "naïve Jaźwiny — 1991",
    "日本語 🙂",
    "x = {'a': [1,\n  2]}",
    "<|endoftext|>",
    "\r\n \x00",
]


@pytest.mark.parametrize("text", KNOWN)
def test_published_tokens(wikipedia_dir, text):
    tokens = BPE().encode(text)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == KNOWN[text]
    assert BPE().prompt(text).tolist() == [END, *KNOWN[text]]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_encoded_is_decoded(wikipedia_dir, text):
    tokens = BPE().encode(text)
    assert "".join(BPE().decode(tokens.tolist())) == text
    assert END not in tokens


def test_the_tokens_of_wikipedia_are_those_of_its_text(wikipedia_dir):
    tokens = np.fromfile(wikipedia_dir / "wikipedia_gpt2" / "wikipedia_val_000000.bin", "<u2", 30_000, offset=1024)
    documents = np.split(tokens, np.flatnonzero(tokens == END))[1:-1]
    assert len(documents) > 20
    for document in documents:
        text = "".join(BPE().decode(document.tolist()))
        np.testing.assert_array_equal(BPE().prompt(text), document)


def test_characters_come_as_soon_as_their_bytes_are_there_and_broken_ones_are_replaced(wikipedia_dir):
    emoji = BPE().encode("🙂").tolist()
    assert len(emoji) > 1
    a, b = BPE().encode("a").tolist(), BPE().encode("b").tolist()
    assert list(BPE().decode([*a, *emoji, *b])) == ["a", "🙂", "b"]
    assert "".join(BPE().decode([*emoji[:-1], *b])) == "�b"
    assert "".join(BPE().decode(emoji[:-1])) == "�"
    arrived = BPE().decode(iter([*a, *emoji, "never asked for"]))
    assert [next(arrived), next(arrived)] == ["a", "🙂"]


def test_nothing_is_copied_and_the_environment_is_left_as_it_was(wikipedia_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for before in (None, str(tmp_path / "own")):
        if before:
            monkeypatch.setenv("TIKTOKEN_CACHE_DIR", before)
        bpe.load_encoding.__wrapped__()
        assert os.environ.get("TIKTOKEN_CACHE_DIR") == before
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_files_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(bpe, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not download vocab\.bpe") as error:
        bpe.load_encoding.__wrapped__()
    assert str(tmp_path / "gpt2_bpe") in str(error.value)
    (tmp_path / "gpt2_bpe" / "vocab.bpe").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"vocab\.bpe is damaged"):
        bpe.load_encoding.__wrapped__()
