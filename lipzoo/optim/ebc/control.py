"""What corrects Ellipsotope-Budgeted Clipping by the divergence that its steps really cause: three optional loops."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lipzoo.config.fields import prefixed_options
from lipzoo.config.ranges import Count, NonNegative, Part, Positive, Range, Whole

Scalar = Float[Array, ""]
Clock = Int[Array, ""]
AtLeastOne = Annotated[float, Range(1)]


@prefixed_options
@dataclasses.dataclass(frozen=True)
class ControllerConfig:
    """A proportional-integral controller of δ: with e = δ* - KL, log δ ← log δ + kp·e + ki·EMA(e)."""

    enable: bool = False
    """Move δ until the measured KL is the target."""
    period: Count = 20
    """Steps between measurements."""
    kp: NonNegative = 0.15
    """Proportional gain, per nat."""
    ki: NonNegative = 0.02
    """Integral gain, per nat."""
    halflife: Positive = 250.0
    """Steps in which the moving average of the error forgets half."""
    delta_min: Positive = 0.01
    """Smallest δ, in nats per token."""
    delta_max: Positive = 0.30
    """Largest δ, in nats per token."""

    def conflict(self, target_kl: float) -> str | None:
        """Which settings do not go together, or None."""
        if not self.enable:
            return None
        if not self.delta_min <= target_kl <= self.delta_max:
            return (
                f"--ebc.target-kl {target_kl:g} must lie between --ebc.controller.delta-min {self.delta_min:g} "
                f"and --ebc.controller.delta-max {self.delta_max:g}"
            )
        return None

    def __call__(self, delta: Scalar, error: Scalar, target: Scalar, kl: Scalar) -> tuple[Scalar, Scalar]:
        """The next δ and moving average of the error."""
        keep = 0.5 ** (self.period / self.halflife)
        now = target - kl
        error = keep * error + (1 - keep) * now
        moved = delta * jnp.exp(self.kp * now + self.ki * error)
        return jnp.clip(moved, self.delta_min, self.delta_max), error


@prefixed_options
@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Shrinks τ where the budget was too small, ρ = ‖Δz‖/(c·S) > 1, and lets it recover."""

    enable: bool = False
    """Shrink τ where a step moved the logits further than its budget."""
    warmup: Whole = 100
    """Steps before it acts."""
    floor: Part = 0.05
    """Smallest factor on τ."""
    max_shrink: AtLeastOne = 4.0
    """τ shrinks at most by so much at a measurement."""
    recover: AtLeastOne = 1.10
    """τ grows by so much at a measurement without excess, up to its full size."""
    exponent: NonNegative = 0.5
    """τ shrinks by ρ to the minus this."""

    def __call__(self, scale: Scalar, rho: Scalar, count: Clock) -> Scalar:
        """The next factor on τ."""
        shrunk = scale * jnp.maximum(rho**-self.exponent, 1 / self.max_shrink)
        moved = jnp.clip(jnp.where(rho > 1, shrunk, scale * self.recover), self.floor, 1.0)
        return jnp.where(count >= self.warmup, moved, scale)


@prefixed_options
@dataclasses.dataclass(frozen=True)
class SurrogateConfig:
    """Multiplies S by a moving average of ρ: what the budget would have had to be.

    With `aggregate exact`, where S is right to first order, this is the correction of second order.
    """

    enable: bool = False
    """Rescale S by what steps really did."""
    beta: Part = 0.2
    """Weight of the newest ρ in the moving average."""
    exponent: NonNegative = 1.0
    """S is multiplied by the average to this power."""
    floor: Part = 0.25
    """Smallest ρ that counts."""
    ceiling: AtLeastOne = 8.0
    """Largest ρ that counts."""
    warmup: Whole = 0
    """Steps before it acts."""

    def __call__(self, average: Scalar, rho: Scalar, count: Clock) -> Scalar:
        """The next moving average of ρ; a ρ that is not finite says nothing."""
        moved = (1 - self.beta) * average + self.beta * jnp.clip(rho, self.floor, self.ceiling)
        return jnp.where((count >= self.warmup) & jnp.isfinite(rho), moved, average)

    def factor(self, average: Scalar) -> Scalar:
        """What S is multiplied by."""
        return average**self.exponent if self.enable else jnp.ones_like(average)
