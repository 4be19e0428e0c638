"""A loss that trains for certified accuracy at a distance."""

import dataclasses
import math

from lipzoo.recipe.asked import log_bound, without_arrays
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.theory.numbers import round_digits

MARGIN = 4.0
"""What the loss takes off the right logit, in units of what a change of size ε can do to a difference of two.

Measured on CIFAR-10 at 36/255 (MLP of width 256, MaxMin), by what is certified: the best of 0, 1, 2, 4 after 400 steps
at caps 1 and 1.7 alike, and of 0, 4, 8 after 2,000 steps.
"""
SHARPNESS = 0.7
"""The temperature times that unit: 0.7 was best of 0.4, 0.7, 1.4 after 2,000 steps, 0.4 of 0.2 to 1.5 after 400."""

FARTHEST = 50.0
"""Logarithms of that unit beyond which float32 has no room for what follows from it."""


def with_certify_at(recipe: Recipe) -> Recipe:
    """The recipe with the temperature and the margin of the loss that --certify-at ε asks for.

    By the caps alone no difference of two logits changes by more than m = √2·L·ε, L the ℓ₂ constant: √(classes/pixels)
    times the a-priori bound. An image is certified at ε where its right logit is above all others by m. So the loss
    takes `MARGIN` times m off that logit, and its temperature is `SHARPNESS`/m: logits are told apart in units of m.

    **Raises:** UserError if it is no classifier of images, or no caps bound it.
    """
    training = recipe.training
    if not training.certify_at or training.epsilon is None:
        return recipe
    if recipe.data.white is None:
        raise UserError("--certify-at is for classifiers of images: leave it out")
    whole = recipe.complete()
    log_l = log_bound(without_arrays(whole.abstract_model()), whole)
    pixels, classes, _ = whole.data.sizes
    log_change = log_l + math.log(training.epsilon * math.sqrt(2 * classes / pixels))
    if abs(log_change) > FARTHEST:
        raise UserError(
            "--certify-at needs caps that bound the network by a number of some size: use --constraint soft-cap, or "
            "another that caps, with a --sigma-max nearer to 1"
        )
    change = math.exp(log_change)
    chosen = {"margin": _six(MARGIN * change), "temperature": _six(SHARPNESS / change)}
    return dataclasses.replace(recipe, training=dataclasses.replace(training, **chosen))


def _six(value: float) -> float:
    return float(round_digits(value, 6))
