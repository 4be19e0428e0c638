"""How many runs at once: as many as are done faster together, and as memory holds."""

from collections.abc import Callable, Sequence

import jax

from lipzoo.data import Data
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.together import train_together

STEPS = 20
"""Steps that are timed, after the first, which compiles."""
GAIN = 1.1
"""By how much twice as many runs have to be faster, so that it is worth a compilation."""
ROOM = 0.45
"""Of a device's memory, how much may be in use for twice as many runs to be tried."""


def width_of(recipes: Sequence[Recipe], load: Callable[[Recipe], Data]) -> int:
    """How many recipes of one plan to train at once.

    On CPUs one: the products of small networks are at their floor there, and processes, each on a core, gain more. On
    accelerators it is measured, by doubling.
    """
    if jax.default_backend() == "cpu" or len(recipes) == 1:
        return 1
    return measured_width(recipes, load)


def measured_width(recipes: Sequence[Recipe], load: Callable[[Recipe], Data]) -> int:
    """Doubles the runs at once as long as these are done faster, and memory is left for twice as many."""
    best, rate, width = 1, 0.0, len(jax.devices())
    while width <= max(len(recipes), len(jax.devices())):
        reached = _rate(recipes[:width], load)
        if reached < GAIN * rate:
            break
        best, rate = width, reached
        if _in_use() > ROOM:
            break
        width *= 2
    return best


def _rate(recipes: Sequence[Recipe], load: Callable[[Recipe], Data]) -> float:
    """Steps of all runs in a second."""
    first, *_ = train_together(recipes, load, last=1 + STEPS)
    return (len(first.curves["loss"]) - 1) / max(first.seconds, 1e-9)


def _in_use() -> float:
    """The part of the first device's memory that has been in use at once; 0 where nobody knows."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / stats.get("bytes_limit", 1)
