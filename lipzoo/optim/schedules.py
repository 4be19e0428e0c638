"""Learning-rate schedules: factors of the peak, as functions of the step."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Schedule = Literal["linear", "cosine", "sqrt", "constant", "trapezoid", "triangular"]
Factor = Callable[[Int[Array, ""]], Float[Array, ""]]


def _sqrt(step: Float[Array, ""]) -> Float[Array, ""]:
    return 1 / (1 + jnp.sqrt(jnp.floor(step / 512)))


def schedule(
    name: Schedule,
    steps: int,
    warmup_steps: int = 0,
    cooldown: float = 0.4,
    cooldown_floor: float = 0.1,
    peak_at: float = 0.4,
) -> Factor:
    """The factor of the peak learning rate at each step 0, 1, …, `steps` - 1.

    - `linear`: 1 - s/steps. `cosine`: ½(1 + cos πs/steps). `constant`: 1. `sqrt`: 1/(1 + √⌊s/512⌋).
    - `trapezoid`: constant, then linear down to `cooldown_floor` over the last `cooldown` of the steps.
    - `triangular`: linear up to step p = `peak_at` · steps, rounded, (s + 1)/(p + 1), then linear down to 0,
      1 - (s - p)/(steps - p). It has no other warm-up. The peak is by default where it is in "A Unified Algebraic
      Perspective on Lipschitz Neural Networks" (Araujo et al. 2023), of whose code the way down has a bend.

    A warm-up first rises linearly, (s + 1)/(warmup_steps + 1), and the schedule runs over the remaining steps. No
    factor is above 1, so the peak learning rate bounds every step.
    """
    if name == "triangular":
        warmup_steps = min(round(peak_at * steps), steps - 1)
    rest = max(steps - warmup_steps, 1)
    tail = max(round(cooldown * rest), 1)
    factors: dict[Schedule, Callable[[Any], Any]] = {
        "linear": optax.linear_schedule(1.0, 0.0, rest),
        "triangular": optax.linear_schedule(1.0, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "sqrt": _sqrt,
        "constant": optax.constant_schedule(1.0),
        "trapezoid": optax.linear_schedule(1.0, cooldown_floor, tail, transition_begin=rest - tail),
    }
    rise = optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
    whole = optax.join_schedules([rise, factors[name]], [warmup_steps])
    return lambda step: jnp.asarray(whole(step.astype(jnp.float32)), jnp.float32)
