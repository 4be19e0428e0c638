"""Handwritten digits that come with scikit-learn: 1,797 images of 8×8 pixels. Needs no download."""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lipzoo.data.batches import Split
from lipzoo.data.images import Form, Images

FORM = Form((1, 8, 8), white=16, classes=10)
TEST_IMAGES = 360


def load_digits() -> Images:
    """The UCI optical digits (test part), split once: the last 360 images are the test split."""
    table = _table()
    image, label = table[:, :-1].astype(np.uint8), table[:, -1].astype(np.int32)
    train, test = slice(None, -TEST_IMAGES), slice(-TEST_IMAGES, None)
    return Images(Split(image[train], label[train]), Split(image[test], label[test]), **FORM._asdict())


def _table() -> Float[np.ndarray, "images 65"]:
    """Pixels and label of each, from the file of scikit-learn: to import that takes longer than a short run."""
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits as load

    data, target = load(return_X_y=True)
    return np.column_stack([data, target])
