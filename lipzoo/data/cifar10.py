"""CIFAR-10 (Krizhevsky 2009) in its binary version: 60,000 colour images of 32×32 pixels in ten classes."""

import math
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from lipzoo.data.batches import Split
from lipzoo.data.download import cache_dir, download
from lipzoo.data.images import Form, Images
from lipzoo.system.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
FORM = Form((3, 32, 32), white=255, classes=10)
PIXELS = math.prod(FORM.shape)
FILE_BYTES = 10_000 * (1 + PIXELS)


def load_cifar10() -> Images:
    """CIFAR-10 from the cache, downloaded into it first if it is not there."""
    folder = cache_dir() / FOLDER
    if not folder.is_dir():
        fetch(folder)
    return Images(_read(folder, TRAIN_FILES), _read(folder, TEST_FILES), **FORM._asdict())


def fetch(folder: Path) -> None:
    """Downloads and verifies the archive, and unpacks the six files that are needed, by name; all of them or none."""
    archive = download(URL, folder.with_name("cifar-10-binary.tar.gz"), SHA256)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part, tarfile.open(archive) as tar:
        unpacked = Path(part, FOLDER)
        unpacked.mkdir()
        for name in (*TRAIN_FILES, *TEST_FILES):  # Contents alone: no name, link or mode of the archive is used.
            source = tar.extractfile(f"{FOLDER}/{name}")
            assert source is not None
            with source, (unpacked / name).open("wb") as target:
                shutil.copyfileobj(source, target)
        unpacked.replace(folder)
    archive.unlink()


def _read(folder: Path, names: tuple[str, ...]) -> Split:
    records = np.concatenate([_read_file(folder / name) for name in names])
    return Split(np.ascontiguousarray(records[:, 1:]), records[:, 0].astype(np.int32))


def _read_file(path: Path) -> np.ndarray:
    """The records of one file, uint8 of shape (10,000, 3,073): a label, then red, green and blue pixels."""
    remedy = f"delete {path.parent} to download CIFAR-10 again"
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    if path.stat().st_size != FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes instead of {FILE_BYTES:,}: {remedy}")
    records = np.fromfile(path, np.uint8).reshape(-1, 1 + PIXELS)
    if records[:, 0].max() > 9:
        wrong = int(np.argmax(records[:, 0] > 9))
        raise UserError(f"{path}: image {wrong} has the label {records[wrong, 0]}, not 0 to 9: {remedy}")
    return records
