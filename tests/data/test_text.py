"""Texts: every label of the test split counts once, windows are in place, damage and unknown characters are told."""

import numpy as np
import pytest

from lipzoo.data import TextConfig, text
from lipzoo.data.text import Characters, RandomWindows, load_pydoc, windows
from lipzoo.system.errors import UserError


@pytest.mark.parametrize(("count", "length"), [(9, 4), (10, 4), (11, 4), (5, 8)])
def test_windows_cover_every_label_once(count, length):
    split = windows(np.arange(1, count + 1, dtype=np.int32), length)
    counted = split.weight.astype(bool)
    np.testing.assert_array_equal(split.label[counted], np.arange(2, count + 1))
    np.testing.assert_array_equal(split.input[counted], np.arange(1, count))


def test_random_windows_are_pieces_of_the_text_and_reach_all_of_it():
    source = RandomWindows(np.arange(30, dtype=np.int32), 8, 16, 40, seed=1)
    seen = set()
    for index in range(len(source)):
        batch = source[index]
        np.testing.assert_array_equal(batch["label"], batch["input"] + 1)
        np.testing.assert_array_equal(np.diff(batch["input"], axis=1), 1)
        seen.update(batch["label"].ravel().tolist())
    assert seen == set(range(1, 30))
    np.testing.assert_array_equal(source[3]["input"], RandomWindows(source._tokens, 8, 16, 40, 1)[3]["input"])


def test_the_embedded_text_is_its_own_tokenizer():
    config = TextConfig(seq_len=32).complete()
    assert config.complete() is config
    data = config.load(seed=0)
    whole = load_pydoc()
    assert "".join(config.alphabet[t] for t in data.tokens[:200]) == whole[:200]
    assert data.test.weight.sum() == len(whole) - len(data.tokens) - 1
    assert config.sizes[:2] == (len(set(whole)),) * 2


def test_unknown_characters_are_named():
    with pytest.raises(UserError, match="does not know the characters '☃'; it knows 'abc'"):
        Characters("abc").encode("ab☃")


def test_a_damaged_or_missing_text_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(text, "URL", "http://127.0.0.1:9/input.txt")
    with pytest.raises(UserError, match=r"could not download input\.txt"):
        TextConfig(data="shakespeare").complete().load(seed=0)
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("ROMEO:")
    with pytest.raises(UserError, match=r"input\.txt is damaged"):
        TextConfig(data="shakespeare").complete().load(seed=0)


def test_the_alphabet_of_shakespeare_is_known_without_it(shakespeare_dir):
    assert TextConfig(data="shakespeare").complete().alphabet == "".join(sorted(set(text.load_shakespeare())))


def test_a_window_longer_than_the_text_is_told():
    with pytest.raises(UserError, match="--seq-len 10000000 is longer"):
        TextConfig(seq_len=10_000_000).complete().load(seed=0)


def test_real_shakespeare(shakespeare_dir):
    config = TextConfig(data="shakespeare").complete()
    data = config.load(seed=0)
    assert len(config.alphabet) == 65
    assert (len(data.tokens), int(data.test.weight.sum())) == (1_003_854, 111_539)
    assert list(data.tests) == ["val", "published_window"]
    np.testing.assert_array_equal(data.published.input[0], data.test.input[0])
    np.testing.assert_array_equal(data.published.label[:-1, 0], data.published.input[1:, 0])
    assert data.published.label.shape == (1280, 256)
