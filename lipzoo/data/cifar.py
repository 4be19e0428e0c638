"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their binary versions: 60,000 colour images of 32×32 pixels each."""

import dataclasses
import math
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lipzoo.data.batches import Split
from lipzoo.data.download import cache_dir, download
from lipzoo.data.images import Form, Images
from lipzoo.system.errors import UserError

SITE = "https://www.cs.toronto.edu/~kriz/"
SHAPE = (3, 32, 32)
WHITE = 255
PIXELS = math.prod(SHAPE)


@dataclasses.dataclass(frozen=True, eq=False)
class Cifar:
    """One of the two sets: files of records, each of a label byte or two, then red, green and blue pixels.

    Archives are verified by their sha256, which TensorFlow Datasets publishes too; files by their sizes and labels.

    **Attributes:**

    - `folder`: in the archive and in the cache. `train`, `test`: how many images each file has.
    - `classes`: of each label byte. The last label is the one to learn: CIFAR-100 has a coarse one before it.
    """

    name: str
    url: str
    sha256: str
    folder: str
    train: Mapping[str, int]
    test: Mapping[str, int]
    classes: tuple[int, ...]

    @property
    def form(self) -> Form:
        """What is known without the data."""
        return Form(SHAPE, white=WHITE, classes=self.classes[-1])

    def load(self) -> Images:
        """The images from the cache, downloaded into it first if they are not there.

        **Raises:** UserError without a network, or if the archive or a file is damaged.
        """
        folder = cache_dir() / self.folder
        if not folder.is_dir():
            self.fetch(folder)
        return Images(self._read(folder, self.train), self._read(folder, self.test), **self.form._asdict())

    def fetch(self, folder: Path) -> None:
        """Downloads and verifies the archive, and unpacks the files that are needed, by name; all of them or none."""
        archive = download(self.url, folder.with_name(self.url.rpartition("/")[2]), self.sha256)
        with tempfile.TemporaryDirectory(dir=folder.parent) as part, tarfile.open(archive) as tar:
            unpacked = Path(part, self.folder)
            unpacked.mkdir()
            for name in (*self.train, *self.test):  # Contents alone: no name, link or mode of the archive is used.
                source = tar.extractfile(f"{self.folder}/{name}")
                assert source is not None
                with source, (unpacked / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
            unpacked.replace(folder)
        archive.unlink()

    def _read(self, folder: Path, files: Mapping[str, int]) -> Split:
        records = np.concatenate([self._read_file(folder / name, count) for name, count in files.items()])
        labels = len(self.classes)
        return Split(np.ascontiguousarray(records[:, labels:]), records[:, labels - 1].astype(np.int32))

    def _read_file(self, path: Path, images: int) -> np.ndarray:
        """The records of one file, uint8 of shape (images, labels + 3,072)."""
        remedy = f"delete {path.parent} to download {self.name} again"
        if not path.is_file():
            raise UserError(f"{path} is missing: {remedy}")
        length = len(self.classes) + PIXELS
        if path.stat().st_size != images * length:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes instead of {images * length:,}: {remedy}")
        records = np.fromfile(path, np.uint8).reshape(-1, length)
        for label, classes in zip(records.T, self.classes, strict=False):
            if label.max() >= classes:
                wrong = int(np.argmax(label >= classes))
                raise UserError(f"{path}: image {wrong} has the label {label[wrong]}, not 0 to {classes - 1}: {remedy}")
        return records


CIFAR10 = Cifar(
    "CIFAR-10",
    f"{SITE}cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    test={"test_batch.bin": 10_000},
    classes=(10,),
)
CIFAR100 = Cifar(
    "CIFAR-100",
    f"{SITE}cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    train={"train.bin": 50_000},
    test={"test.bin": 10_000},
    classes=(20, 100),
)


def load_cifar10() -> Images:
    """CIFAR-10: ten classes. See `Cifar.load`."""
    return CIFAR10.load()


def load_cifar100() -> Images:
    """CIFAR-100 by its 100 fine classes. See `Cifar.load`."""
    return CIFAR100.load()
