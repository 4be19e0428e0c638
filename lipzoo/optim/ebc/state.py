"""What the trust region remembers, and tells of the last step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LogitsFn = Callable[[Any], Float[Array, "tokens classes"]]
Scalar = Float[Array, ""]


class EBCState(NamedTuple):
    """What EBC remembers, and (from `tau` on) what it tells of the last step or measurement."""

    beta: Float[Array, " layers"]
    delta: Scalar
    """δ before `target_schedule`: the target, unless a controller moves it."""
    error: Scalar
    """The controller's moving average of its error."""
    tau_scale: Scalar
    """The guard's factor on τ."""
    surrogate: Scalar
    """The calibration's moving average of ρ."""
    tau: Scalar
    budget: Scalar
    """S, calibrated."""
    c: Scalar
    kl: Scalar
    """Applied KL when it was last measured (in every step, with `exact`), in nats per token."""
    rho: Scalar
    """‖Δz‖/(c·S) when it was last measured."""


def telemetry(opt_state: Any) -> dict[str, Scalar]:
    """What the EBC inside an optimizer's state tells of the last step; empty if there is none."""
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(node)]
    if not found:
        return {}
    (state,) = found
    told = ("tau", "budget", "c", "kl", "rho", "delta", "tau_scale", "surrogate")
    values = {f"ebc_{name}": getattr(state, name) for name in told}
    values["ebc_clipped"] = (state.c < 1).astype(jnp.float32)
    if state.beta.size:
        values |= {"ebc_beta_mean": state.beta.mean(), "ebc_beta_max": state.beta.max()}
    return values


def _is_state(node: Any) -> bool:
    return isinstance(node, EBCState)
