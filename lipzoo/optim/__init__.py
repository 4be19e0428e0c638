"""Optimizers as optax chains, with the norm that one step can have."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from lipzoo.msign import POLYNOMIALS, PolynomialName
from lipzoo.optim.ebc import EBCConfig as EBCConfig
from lipzoo.optim.muon import scale_by_muon as scale_by_muon
from lipzoo.optim.muon import update_sup as update_sup
from lipzoo.optim.schedules import Factor, Schedule
from lipzoo.optim.schedules import schedule as schedule
from lipzoo.weight import map_weights

LARGEST_BETA = 0.99999
"""Beyond it 1 - β loses its digits in float32."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The part of a recipe that describes the optimizer."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: orthogonalized momentum, whose step has a known norm; adamw: Adam without bias correction."""
    lr: float = 0.1
    """Peak learning rate. Muon's step moves a layer by lr × its share in RMS→RMS norm."""
    beta1: float = 0.9
    """Momentum."""
    beta2: float = 0.95
    """Second-moment decay of AdamW."""
    weight_decay: float = 0.0
    """λ: each step multiplies a weight by 1 - λ·lr·share first."""
    nesterov: bool = False
    """Nesterov momentum, for muon."""
    polynomial: PolynomialName = "six-row"
    """Orthogonalizing polynomial of muon."""
    msign_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of muon's orthogonalization."""
    embed_inflation: float = 16.0
    """Largest factor by which muon enlarges the momentum of a rare token's embedding."""
    schedule: Schedule = "linear"
    """Shape of the learning rate over the steps."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly."""

    @property
    def update_sup(self) -> float:
        """The largest RMS→RMS norm of an update per unit of lr × share; infinite where it is not known beforehand."""
        if self.optimizer == "adamw":
            return math.inf
        return update_sup(POLYNOMIALS[self.polynomial])

    def refusal(self, steps: int) -> str | None:
        """Why there is no such optimizer, or None."""
        if not 0 < self.lr < math.inf:
            return f"--lr must be positive and finite, got {self.lr}"
        if not (0 <= self.beta1 <= LARGEST_BETA and 0 <= self.beta2 <= LARGEST_BETA):
            return f"--beta1 and --beta2 must lie between 0 and {LARGEST_BETA}"
        if not 0 <= self.weight_decay < math.inf:
            return f"--weight-decay must be at least 0 and finite, got {self.weight_decay}"
        if not 1 <= self.embed_inflation < math.inf:
            return f"--embed-inflation must be at least 1 and finite, got {self.embed_inflation}"
        if not 0 <= self.warmup_steps < steps:
            return f"--warmup-steps must be at least 0 and below --steps {steps}, got {self.warmup_steps}"
        if self.polynomial == "polar-express" and self.msign_dtype == "bfloat16":
            return "--polynomial polar-express diverges in bfloat16: choose another, or --msign-dtype float32"
        if self.nesterov and self.optimizer != "muon":
            return "--nesterov is for --optimizer muon"
        return None

    def build(self, clip: optax.GradientTransformationExtraArgs | None = None) -> optax.GradientTransformationExtraArgs:
        """gradients → updates for a learning rate of -1: muon is share-scaled, and so is the decay of both.

        `clip` comes between the optimizer and the decay. Arguments beyond optax's three are for it.
        """
        decay = [_add_decay(self.weight_decay)] if self.weight_decay else []
        decay = decay if clip is None else [clip, *decay]
        if self.optimizer == "adamw":
            return optax.with_extra_args_support(optax.chain(_scale_by_adam(self.beta1, self.beta2), *decay))
        muon = scale_by_muon(
            POLYNOMIALS[self.polynomial],
            beta=self.beta1,
            nesterov=self.nesterov,
            dtype=jnp.dtype(self.msign_dtype),
            embed_inflation=self.embed_inflation,
        )
        return optax.with_extra_args_support(optax.chain(muon, _scale_by_share(), *decay))

    def factor(self, steps: int) -> Factor:
        """The learning rate as a fraction of its peak."""
        return schedule(self.schedule, steps, self.warmup_steps)


def _scale_by_share() -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: map_weights(lambda u: u.with_array(u.array * u.share), updates))


def _add_decay(rate: float) -> optax.GradientTransformation:
    """Adds λ·share·W to each update."""

    def add(updates: Any, params: Any) -> Any:
        return map_weights(lambda u, w: u.with_array(u.array + rate * w.share * w.array), updates, params)

    return optax.stateless(add)


def _scale_by_adam(beta1: float, beta2: float) -> optax.GradientTransformation:
    """m/(√v + 1e-12) without bias correction: optax's Adam, told that it has run for ever."""
    adam = optax.scale_by_adam(beta1, beta2, eps=1e-12)

    def init(params: Any) -> Any:
        state: Any = adam.init(params)
        return state._replace(count=jnp.full_like(state.count, jnp.iinfo(jnp.int32).max))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power.
            return adam.update(updates, state, params)

    return optax.GradientTransformation(init, update)
