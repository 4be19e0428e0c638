"""What corrects Ellipsotope-Budgeted Clipping by the divergence that its steps really cause: three optional loops."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Scalar = Float[Array, ""]
Count = Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class ControllerConfig:
    """A proportional-integral controller of δ: with e = δ* - KL, log δ ← log δ + kp·e + ki·EMA(e)."""

    enable: bool = False
    """Move δ until the measured KL is the target."""
    period: int = 20
    """Steps between measurements."""
    kp: float = 0.15
    """Proportional gain, per nat."""
    ki: float = 0.02
    """Integral gain, per nat."""
    halflife: float = 250.0
    """Steps in which the moving average of the error forgets half."""
    delta_min: float = 0.01
    """Smallest δ, in nats per token."""
    delta_max: float = 0.30
    """Largest δ, in nats per token."""

    def refusal(self, target_kl: float) -> str | None:
        """Why there is no such controller, or None."""
        if not self.enable:
            return None
        if self.period < 1 or not 0 < self.halflife < math.inf:
            return "--ebc.controller.period and --ebc.controller.halflife must be at least 1 and positive"
        if not (0 <= self.kp < math.inf and 0 <= self.ki < math.inf):
            return "--ebc.controller.kp and --ebc.controller.ki must be at least 0 and finite"
        if not 0 < self.delta_min <= target_kl <= self.delta_max:
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


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Shrinks τ where the budget was too small, ρ = ‖Δz‖/(c·S) > 1, and lets it recover."""

    enable: bool = False
    """Shrink τ where a step moved the logits further than its budget."""
    warmup: int = 100
    """Steps before it acts."""
    floor: float = 0.05
    """Smallest factor on τ."""
    max_shrink: float = 4.0
    """τ shrinks at most by so much at a measurement."""
    recover: float = 1.10
    """τ grows by so much at a measurement without excess, up to its full size."""
    exponent: float = 0.5
    """τ shrinks by ρ to the minus this."""

    def refusal(self) -> str | None:
        """Why there is no such guard, or None."""
        if not self.enable:
            return None
        if self.warmup < 0 or not 0 < self.floor <= 1:
            return "--ebc.guard.warmup must be at least 0, and --ebc.guard.floor lie between 0 and 1"
        if not (1 <= self.max_shrink < math.inf and 1 <= self.recover < math.inf and 0 <= self.exponent < math.inf):
            return "--ebc.guard.max-shrink and --ebc.guard.recover must be at least 1, --ebc.guard.exponent at least 0"
        return None

    def __call__(self, scale: Scalar, rho: Scalar, count: Count) -> Scalar:
        """The next factor on τ."""
        shrunk = scale * jnp.maximum(rho**-self.exponent, 1 / self.max_shrink)
        moved = jnp.clip(jnp.where(rho > 1, shrunk, scale * self.recover), self.floor, 1.0)
        return jnp.where(count >= self.warmup, moved, scale)


@dataclasses.dataclass(frozen=True)
class SurrogateConfig:
    """Multiplies S by a moving average of ρ: what the budget would have had to be.

    With `aggregate exact`, where S is right to first order, this is the correction of second order.
    """

    enable: bool = False
    """Rescale S by what steps really did."""
    beta: float = 0.2
    """Weight of the newest ρ in the moving average."""
    exponent: float = 1.0
    """S is multiplied by the average to this power."""
    floor: float = 0.25
    """Smallest ρ that counts."""
    ceiling: float = 8.0
    """Largest ρ that counts."""
    warmup: int = 0
    """Steps before it acts."""

    def refusal(self) -> str | None:
        """Why there is no such calibration, or None."""
        if not self.enable:
            return None
        if not 0 < self.beta <= 1 or self.warmup < 0:
            return "--ebc.surrogate.beta must lie between 0 and 1, and --ebc.surrogate.warmup be at least 0"
        if not (0 < self.floor <= 1 <= self.ceiling < math.inf and 0 <= self.exponent < math.inf):
            return (
                "--ebc.surrogate.floor must lie between 0 and 1, --ebc.surrogate.ceiling be at least 1 and finite, "
                "and --ebc.surrogate.exponent at least 0"
            )
        return None

    def __call__(self, average: Scalar, rho: Scalar, count: Count) -> Scalar:
        """The next moving average of ρ; a ρ that is not finite says nothing."""
        moved = (1 - self.beta) * average + self.beta * jnp.clip(rho, self.floor, self.ceiling)
        return jnp.where((count >= self.warmup) & jnp.isfinite(rho), moved, average)

    def factor(self, average: Scalar) -> Scalar:
        """What S is multiplied by."""
        return average**self.exponent if self.enable else jnp.ones_like(average)
