"""Token shards: windows cover them, what is damaged is told in one sentence, Wikipedia reads as English."""

import json

import numpy as np
import pytest

from lipzoo.config.fields import field_refusal
from lipzoo.data import TokensConfig
from lipzoo.data.batches import Shuffle
from lipzoo.data.tokens import ShuffledWindows
from lipzoo.system.errors import UserError


def shard_bytes(tokens, magic=20240520, version=1, count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + np.asarray(tokens, "<u2").tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two training shards and one to validate on, of counted tokens."""
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
    folder = tmp_path / "counted"
    folder.mkdir()
    for name, tokens in {
        "x_train_000001": range(100),
        "x_train_000002": range(1000, 1050),
        "x_train_000003": range(9),
        "x_val_000000": range(2000, 2030),
    }.items():
        (folder / f"{name}.bin").write_bytes(shard_bytes(tokens))
    return folder


def config(**options):
    return TokensConfig(**{"data": "counted", "batch_size": 4, "seq_len": 8, "train_shards": 2, **options})


def test_an_epoch_has_every_window_of_every_shard_once(folder):
    data = config().load(seed=0)
    windows = 99 // 8 + 49 // 8
    assert sum(len(shard) for shard in data.shards) == 150
    batches = list(data.batches(batch_size=windows, count=3, seed=7))
    starts = [list(range(0, 96, 8)) + list(range(1000, 1048, 8))] * 3
    assert [sorted(batch["input"][:, 0].tolist()) for batch in batches] == starts
    assert len({tuple(batch["input"][:, 0].tolist()) for batch in batches}) == 3
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], batch["input"] + 1)
        np.testing.assert_array_equal(np.diff(batch["input"], axis=1), 1)
        assert batch["input"].dtype == batch["label"].dtype == np.int32


@pytest.mark.parametrize(("val_tokens", "counted"), [(100, 29), (29, 29), (16, 16), (5, 5)])
def test_validation_predicts_each_token_once_up_to_so_many(folder, val_tokens, counted):
    split = config(val_tokens=val_tokens).load(seed=0).tests["val"]
    assert split.label[split.weight == 1].tolist() == list(range(2001, 2001 + counted))
    assert split.input[split.weight == 1].tolist() == list(range(2000, 2000 + counted))


def test_only_the_rows_asked_for_are_read():
    class Counted(np.ndarray):
        read = 0

        def __getitem__(self, key):
            Counted.read += 1
            return super().__getitem__(key)

    shard = np.arange(1000, dtype=np.uint16).view(Counted)
    source = ShuffledWindows([shard], 8, 16, 5, seed=0, rows=slice(4, 7))
    assert source[2]["input"].shape == (3, 8)
    assert Counted.read == 3


def test_batches_run_across_epochs():
    shuffle = Shuffle(7, 5, seed=1)
    seen = np.concatenate([shuffle[index] for index in range(7)])
    for epoch in seen.reshape(5, 7):
        assert sorted(epoch) == list(range(7))


DAMAGE = {
    "truncated": (shard_bytes(range(50))[:-3], "has 1,121 bytes, which are not the 50 tokens stated in its header"),
    "longer": (shard_bytes(range(50)) + b"x", "has 1,125 bytes"),
    "negative": (shard_bytes(range(50), count=-5), "has 1,124 bytes, which are not the -5 tokens"),
    "version": (shard_bytes(range(50), version=2), "is a token shard of version 2, not 1"),
    "magic": (shard_bytes(range(50), magic=20240521), "is not a token shard"),
    "header": (shard_bytes([])[:900], "is not a token shard"),
    "empty": (b"", "is not a token shard"),
    "range": (shard_bytes([1, 2, 50256, 50257, 3]), "token 3 is 50257, not 0 to 50256"),
    "single": (shard_bytes([1]), "has 1 tokens, too few to predict one from another"),
}


@pytest.mark.parametrize("name", ["x_train_000002.bin", "x_val_000000.bin"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_are_named_with_the_remedy(folder, name, damage):
    content, message = DAMAGE[damage]
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        config().load(seed=0)
    assert f"{folder / name}" in str(error.value)
    assert message in str(error.value)
    assert "replace it by a whole one" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_token_out_of_range_is_found_in_any_chunk(folder, monkeypatch):
    monkeypatch.setattr("lipzoo.data.tokens.CHECKED_TOGETHER", 8)
    (folder / "x_train_000001.bin").write_bytes(shard_bytes([*range(20), 65535, 60000]))
    with pytest.raises(UserError, match="token 20 is 65535"):
        config().load(seed=0)


MISSING = [
    ({"data": "nowhere"}, r"nowhere holds no token shards \*_train_\*\.bin: put them there, or choose another --data"),
    ({"batch_size": 19}, "18 windows of 8 tokens to train on, too few for a batch of 19: lower --batch-size"),
    ({"seq_len": 100, "batch_size": 1}, "0 windows of 100 tokens"),
]


@pytest.mark.parametrize(("options", "message"), MISSING)
def test_what_is_missing_is_told(folder, options, message):
    with pytest.raises(UserError, match=message):
        config(**options).load(seed=0)


def test_missing_validation_shards_are_told(folder):
    (folder / "x_val_000000.bin").unlink()
    with pytest.raises(UserError, match=r"holds no token shards \*_val_\*\.bin"):
        config().load(seed=0)


@pytest.mark.parametrize("name", ["batch_size", "seq_len", "train_shards", "val_tokens"])
def test_impossible_settings_are_refused(name):
    assert field_refusal(config()) is None
    assert field_refusal(config(**{name: 0})) == f"--{name.replace('_', '-')} must be at least 1, got 0"


def test_the_vocabulary_is_padded():
    assert config().complete().sizes[:2] == (50304, 50304)
    assert config().unit == ("tokens", 8)


def test_wikipedia(wikipedia_dir):
    config = TokensConfig(data="wikipedia_gpt2", batch_size=16, seq_len=1024)
    data = config.load(seed=0)
    assert [len(shard) for shard in data.shards] == [16_000_000]
    assert data.test.weight.sum() == 999_999
    tokens = data.shards[0][:2000].tolist()
    assert tokens[0] == 50256
    text = "".join(config.tokenizer().decode(tokens[: tokens.index(50256, 1)]))
    assert "is a town" in text
    assert sum(character.isalpha() or character.isspace() for character in text) > 0.9 * len(text)
    stream = data.batches(batch_size=16, count=9, seed=3)
    for _ in range(4):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    again = config.load(seed=0).batches(batch_size=16, count=9, seed=3)
    again.set_state(state)
    np.testing.assert_equal(list(again), list(stream))
