"""Handwritten digits that come with scikit-learn: 1,797 images of 8×8 pixels. Needs no download."""

import numpy as np

from lipzoo.data.batches import Split
from lipzoo.data.images import Form, Images

FORM = Form((1, 8, 8), white=16, classes=10)
TEST_IMAGES = 360


def load_digits() -> Images:
    """The UCI optical digits (test part), split once: the last 360 images are the test split."""
    from sklearn.datasets import load_digits as load  # Slow to import, and used by this source alone.

    data, target = load(return_X_y=True)
    image, label = np.asarray(data).astype(np.uint8), np.asarray(target).astype(np.int32)
    train, test = slice(None, -TEST_IMAGES), slice(-TEST_IMAGES, None)
    return Images(Split(image[train], label[train]), Split(image[test], label[test]), **FORM._asdict())
