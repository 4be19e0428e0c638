"""CIFAR files: every kind of damage is told in one sentence; downloads are verified."""

import dataclasses
import hashlib
import io
import tarfile
from typing import NamedTuple

import numpy as np
import pytest

from lipzoo.data import DataConfig, cifar
from lipzoo.system.errors import UserError

RECORDS = 20


class Small(NamedTuple):
    """One of the sets with small files, served from a local address to an empty cache."""

    load: object
    set: cifar.Cifar
    folder: object

    @property
    def record(self):
        return len(self.set.classes) + 3072

    def replace(self, monkeypatch, **changes):
        monkeypatch.setattr(cifar, self.set.name.replace("-", ""), dataclasses.replace(self.set, **changes))


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def small(request, tmp_path, monkeypatch):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path / "cache"))
    real = getattr(cifar, request.param)
    counts = {"train": dict.fromkeys(real.train, RECORDS), "test": dict.fromkeys(real.test, RECORDS)}
    made = dataclasses.replace(real, **counts, **serve(tmp_path / "served.tar.gz", real))
    monkeypatch.setattr(cifar, request.param, made)
    return Small(getattr(cifar, f"load_{request.param.lower()}"), made, tmp_path / "cache" / real.folder)


def record_file(classes):
    records = np.random.default_rng(0).integers(0, 256, (RECORDS, len(classes) + 3072), np.uint8)
    records[:, : len(classes)] %= np.array(classes, np.uint8)
    return records


def serve(path, real):
    """An archive as the real one, and where it lies."""
    content = record_file(real.classes).tobytes()
    with tarfile.open(path, "w:gz") as tar:
        for name in (*real.train, *real.test):
            member = tarfile.TarInfo(f"{real.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return {"url": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_missing_source_is_downloaded_verified_and_unpacked(small):
    images, labels = small.load(), len(small.set.classes)
    assert images.train.input.shape == (len(small.set.train) * RECORDS, 3072)
    assert (images.classes, images.shape, images.white) == (small.set.classes[-1], (3, 32, 32), 255)
    expected = record_file(small.set.classes)
    for split in (images.test, images.train):
        np.testing.assert_array_equal(split.input[-RECORDS:], expected[:, labels:])
        np.testing.assert_array_equal(split.label[-RECORDS:], expected[:, labels - 1])
    assert [path.name for path in small.folder.parent.iterdir()] == [small.folder.name]


def truncate(file, record):
    file.write_bytes(file.read_bytes()[:-5])


def mislabel(at, value):
    def damage(file, record):
        content = bytearray(file.read_bytes())
        content[7 * record + at] = value
        file.write_bytes(content)

    return damage


def remove(file, record):
    file.unlink()


DAMAGE = [
    ("CIFAR10", "data_batch_3.bin", truncate, "data_batch_3.bin has 61,455 bytes instead of 61,460"),
    ("CIFAR10", "data_batch_3.bin", mislabel(0, 11), "data_batch_3.bin: image 7 has the label 11, not 0 to 9"),
    ("CIFAR10", "data_batch_3.bin", remove, "data_batch_3.bin is missing"),
    ("CIFAR100", "train.bin", truncate, "train.bin has 61,475 bytes instead of 61,480"),
    ("CIFAR100", "train.bin", mislabel(0, 20), "train.bin: image 7 has the label 20, not 0 to 19"),
    ("CIFAR100", "train.bin", mislabel(1, 100), "train.bin: image 7 has the label 100, not 0 to 99"),
    ("CIFAR100", "test.bin", remove, "test.bin is missing"),
]


@pytest.mark.parametrize(
    ("small", "file", "damage", "message"), DAMAGE, ids=[row[3] for row in DAMAGE], indirect=["small"]
)
def test_damaged_files_are_named_with_the_remedy(small, file, damage, message):
    small.load()
    damage(small.folder / file, small.record)
    with pytest.raises(UserError) as error:
        small.load()
    assert message in str(error.value)
    assert f"delete {small.folder} to download {small.set.name} again" in str(error.value)


def test_a_wrong_checksum_leaves_nothing_behind(small, monkeypatch):
    small.replace(monkeypatch, sha256="0" * 64)
    with pytest.raises(UserError, match=r"has sha256 [0-9a-f]{64} instead of 0{64}"):
        small.load()
    assert list(small.folder.parent.iterdir()) == []


def test_without_a_network_the_error_names_file_url_variable_and_embedded_recipe(small, monkeypatch):
    name = f"{small.set.name.lower()}-binary.tar.gz"
    small.replace(monkeypatch, url=f"http://127.0.0.1:9/{name}")
    with pytest.raises(UserError) as error:
        small.load()
    for word in (f"download {name}", "http://127.0.0.1:9", "LIPZOO_DATA_DIR", "recipes.digits_mlp"):
        assert word in str(error.value)
    assert list(small.folder.parent.iterdir()) == []


def test_what_is_known_without_the_data():
    assert DataConfig("cifar10").sizes[:2] == (3072, 10)
    assert DataConfig("cifar100").sizes[:2] == (3072, 100)
    assert DataConfig("cifar100").white == 255


def test_the_real_archives_have_names_checksums_and_sizes_of_their_own():
    sets = [cifar.CIFAR10, cifar.CIFAR100]
    for one in sets:
        assert one.url == f"https://www.cs.toronto.edu/~kriz/{one.name.lower()}-binary.tar.gz"
        assert (sum(one.train.values()), sum(one.test.values())) == (50_000, 10_000)
    assert len({one.sha256 for one in sets}) == len({one.folder for one in sets}) == 2


def test_real_cifar10(cifar_dir):
    images = cifar.load_cifar10()
    assert images.train.input.shape == (50_000, 3072)
    assert np.bincount(images.train.label).tolist() == [5000] * 10
    assert np.bincount(images.test.label).tolist() == [1000] * 10
    assert 100 < images.train.input.mean() < 140
