"""CIFAR-10 files: every kind of damage is told in one sentence; downloads are verified."""

import hashlib
import io
import tarfile

import numpy as np
import pytest

from lipzoo.data import cifar10
from lipzoo.system.errors import UserError

RECORDS = 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache for archives of small files, served from a local address."""
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "FILE_BYTES", RECORDS * 3073)
    serve(tmp_path, monkeypatch, {name: record_file() for name in (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)})
    return tmp_path / "cache"


def record_file():
    records = np.random.default_rng(0).integers(0, 256, (RECORDS, 3073), np.uint8)
    records[:, 0] %= 10
    return records.tobytes()


def serve(tmp_path, monkeypatch, files):
    archive = tmp_path / "served.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar10, "URL", archive.as_uri())
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())


def test_a_missing_source_is_downloaded_verified_and_unpacked(cache):
    images = cifar10.load_cifar10()
    assert images.train.input.shape == (5 * RECORDS, 3072)
    assert images.test.label.shape == (RECORDS,)
    expected = np.frombuffer(record_file(), np.uint8).reshape(RECORDS, 3073)
    np.testing.assert_array_equal(images.test.input, expected[:, 1:])
    np.testing.assert_array_equal(images.test.label, expected[:, 0])
    assert sorted(path.name for path in cache.iterdir()) == [cifar10.FOLDER]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-5])


def mislabel(file):
    content = bytearray(file.read_bytes())
    content[7 * 3073] = 11
    file.write_bytes(content)


DAMAGE = [
    (truncate, "data_batch_3.bin has 61,455 bytes instead of 61,460"),
    (mislabel, "data_batch_3.bin: image 7 has the label 11, not 0 to 9"),
    (lambda file: file.unlink(), "data_batch_3.bin is missing"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=["truncated", "mislabelled", "missing"])
def test_damaged_files_are_named_with_the_remedy(cache, damage, message):
    cifar10.load_cifar10()
    damage(cache / cifar10.FOLDER / "data_batch_3.bin")
    with pytest.raises(UserError) as error:
        cifar10.load_cifar10()
    assert message in str(error.value)
    assert f"delete {cache / cifar10.FOLDER} to download CIFAR-10 again" in str(error.value)


def test_a_wrong_checksum_leaves_nothing_behind(cache, monkeypatch):
    monkeypatch.setattr(cifar10, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"has sha256 [0-9a-f]{64} instead of 0{64}"):
        cifar10.load_cifar10()
    assert list(cache.iterdir()) == []


def test_without_a_network_the_error_names_file_url_variable_and_embedded_recipe(cache, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    with pytest.raises(UserError) as error:
        cifar10.load_cifar10()
    for word in ("cifar-10-binary.tar.gz", "http://127.0.0.1:9", "LIPZOO_DATA_DIR", "recipes.digits_mlp"):
        assert word in str(error.value)
    assert list(cache.iterdir()) == []


def test_real_cifar10(cifar_dir):
    images = cifar10.load_cifar10()
    assert images.train.input.shape == (50_000, 3072)
    assert np.bincount(images.train.label).tolist() == [5000] * 10
    assert np.bincount(images.test.label).tolist() == [1000] * 10
    assert 100 < images.train.input.mean() < 140
