"""What is proved of a model while it trains, quickly: at each validation."""

import math

import jax
import numpy as np

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.measured import ExactNorms
from lipzoo.evaluate.radii import pair_constants
from lipzoo.models import AbstractModule
from lipzoo.theory.space import Vector
from lipzoo.theory.weight import weights
from lipzoo.train.evaluate import Proved

LARGEST = 2e7
"""Parameters up to which norms are taken at each validation: a second or two of two CPU cores."""


def prove(model: AbstractModule) -> Proved | None:
    """The certified bound, without a search for a smaller one, and pairs of constants of classifiers of one vector."""
    if sum(math.prod(np.shape(weight.array)) for weight in weights(model)) > LARGEST:
        return None
    model = jax.tree.map(np.asarray, model)
    try:
        norms = ExactNorms()
        pairs = pair_constants(model, norms=norms) if isinstance(model.takes, Vector) else None
        return Proved(Certificate.of(model, norms=norms).lipschitz, pairs)
    except ValueError:  # What has no certificate says so when it is certified, at the end.
        return None
