"""The numbers in which runs of one compiled step may differ."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

if TYPE_CHECKING:
    Number = Float[Array, "*runs"]
else:  # What is resolved from a recipe is NumPy's; inside a compiled step it is traced.
    Number = Float[Array | np.ndarray, "*runs"]


class Hyper(eqx.Module):
    """What a training step takes as arguments beside its state and its batch: float32 numbers, one of each for a run.

    With a leading axis they are those of many runs, over which a step can be vmapped.

    **Attributes:**

    - `lr`: the peak of the learning rate, and `decay`: λ of the weight decay.
    - `beta1`, `beta2`: momentum, and decay of AdamW's second moment. `momentum_start`: β₁ at the start of a warm-up.
      `embedding_beta1`: β₁ of an embedding that Adam moves.
    - `temperature`, `margin`, `smoothing`, `annealing`: of the loss. `target_kl`: δ of the trust region, in nats per
      token. `ema`: of the mean of the weights.
    - `caps`, `shares`: by the names of weights; a cap is rounded down, and infinite where there is none.
    """

    lr: Number
    decay: Number
    beta1: Number
    beta2: Number
    momentum_start: Number
    embedding_beta1: Number
    temperature: Number
    margin: Number
    smoothing: Number
    annealing: Number
    target_kl: Number
    ema: Number
    caps: Mapping[str, Number]
    shares: Mapping[str, Number]


def number(value: float) -> Number:
    """The nearest float32 number."""
    near: Any = np.asarray(value, np.float32)
    return near


def rounded_down(value: float) -> Number:
    """The largest float32 number that is at most this: a weight under it is under what was asked for."""
    near: Any = number(value)
    below: Any = np.asarray(np.nextafter(near, np.float32(-np.inf)))
    return near if float(near) <= value else below  # As floats: NumPy would compare in float32.
