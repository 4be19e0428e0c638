"""Which losses a recipe can have."""

import math
from typing import Any

from lipzoo.theory.weight import weights


def loss_refusal(loss: str, recipe: Any) -> str | None:
    """Why the loss of a complete recipe cannot be computed, or None."""
    if loss != "pairwise":
        return None
    if recipe.data.white is None:
        return "--loss pairwise is for classifiers of images: choose another"
    heads = [weight for weight in weights(recipe.abstract_model()) if weight.place == "head"]
    if not any(math.isfinite(recipe.cap_of(weight)) for weight in heads):
        return "--loss pairwise needs a cap on the last matrix: use --constraint soft-cap, or another that caps"
    return None
