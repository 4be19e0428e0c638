"""Ellipsotope-Budgeted Clipping (EBC): a trust region in the space of predictions, around any optimizer.

A step Δw moves the logits of a probe by Δz = J·Δw to first order (J the Jacobian, Δz ∈ ℝ^(tokens × classes)), and the
predictions p = softmax(z) by KL(p_z ‖ p_(z+Δz)). The whole step of the optimizer, before weight decay and constraints,
is multiplied by one c ≤ 1 to keep the mean over tokens of this divergence at or below δ nats, by one of two routes:

**`l1`, `l2`: the published budget.** The Fisher matrix diag(p) - ppᵀ of a softmax has eigenvalues of at most ½, hence
KL ≤ ¼‖Δz‖² (for any Δz; the shift of a token's logits that changes nothing is taken off first), and
‖Δz‖ ≤ τ = √(4·tokens·δ) suffices. ‖Δz‖ is bounded layer by layer: with β_l = ‖J_l u_l‖/‖u_l‖, the triangle inequality
gives

    ‖Δz‖ ≤ S = Σ_l β_l ‖Δw_l‖ ("l1")   ≤   √L·√(Σ_l (β_l ‖Δw_l‖)²) ("l2", by Cauchy and Schwarz),

and c = min(1, τ/S). β_l is old (a few layers are measured in turn) and belongs to another direction; `safety` is to
make good for that. Both inequalities are far from tight, but old βs, other directions and what is beyond first order
are in no bound: with this route δ is a target, not a promise.

**`exact`: the divergence itself.** With d = Δz of one token, the divergence is a cumulant generating function,

    KL(p_z ‖ p_(z+d)) = log E_p exp(d) - E_p d = ½ Var_p(d) + κ₃(d)/6 + …,

since log Σ exp(z+d) - log Σ exp(z) = log E_p exp(d). One JVP along the *whole* update gives d for all tokens, and
KL₂ = ½·mean Var_p(d). Scaling the step by c scales d by c and KL₂ by c², both up to terms of one order more, so that

    c = min(1, √(δ/KL₂))

makes the divergence δ(1 + O(√δ)) wherever c < 1. No layers, no staleness, no inequality. In the units of the other
route S = √(2·tokens·KL₂) and τ = √(2·tokens·δ).

The terms left out are measured in every step, by running the probe once more with the clipped step; where the
divergence is above δ, c is shrunk until it is not (`shrink_until`). So with `exact` the divergence on the probe *is* at
most δ, as measured in the precision of the model, in every step.

That leaves it below δ by what the first c was too small by. Calibration (`lipzoo.optim.ebc.control`) multiplies S by a
moving average of ρ = √(KL measured/(c²·KL₂)). `refine` corrects every step: c' = min(1, c·√(δ/KL(c))). If KL(c) =
a·c²·(1 + b·c) with x = b·c, the first c ends at δ(1 + x), and c' = c/√(1 + x) at δ(1 + x/√(1 + x))/(1 + x) =
δ(1 - x²/2 + …): what was of first order is gone.

**Which δ.** With a learning rate l, KL₂ goes as l²: a constant δ clips the high learning rates and leaves the low ones
at the end of a schedule alone; `target_schedule lr` multiplies δ by (l/l_peak)², so that c does not depend on the
schedule as long as the direction's effect on the predictions is the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from lipzoo.optim.ebc.config import EBCConfig
from lipzoo.optim.ebc.control import Clock
from lipzoo.optim.ebc.divergence import fisher_variance, mean_kl
from lipzoo.optim.ebc.layers import layer_budget, layer_table, refreshed, size_of_change, step_norms
from lipzoo.optim.ebc.state import EBCState, LogitsFn, Scalar
from lipzoo.optim.hyper import Hyper

MOST_TRIES = 8
"""Smaller steps tried where the divergence is above δ; each may be an eighth of the one before."""


def trust_region(config: EBCConfig) -> optax.GradientTransformationExtraArgs | None:
    """The transformation of a configuration, or None if it is off."""
    return clip_by_predictions(config) if config.enable else None


def clip_by_predictions(config: EBCConfig) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by c = min(1, τ/S), to be chained after an optimizer and before decay.

    The step is taken to be -lr × updates. `update` needs

    - `hyper`: for δ; and the `clock`: the steps done so far.
    - `lr`: the learning rate of this step.
    - `fraction`: the same as a fraction of its peak, for `target_schedule lr`.
    - `logits_fn`: model → logits of the probe, shape (tokens, classes), scaled as in the loss.

    A layer is a weight matrix; a weight that is stacked over blocks counts as one layer a block.
    """

    def init(params: Any) -> EBCState:
        beta = jnp.zeros(sum(count for _, count in layer_table(config, params).values()), jnp.float32)
        one, zero = 1.0, 0.0
        scalars = [config.target_kl, zero, one, one, one, one, one, zero, one]
        # Every field is an array of its own, since the compiled step is given its state's buffers.
        return EBCState(beta, *[jnp.full((), x, jnp.float32) for x in scalars])

    def update(
        updates: Any,
        state: EBCState,
        params: Any = None,
        *,
        hyper: Hyper,
        clock: Clock,
        lr: Scalar,
        fraction: Scalar,
        logits_fn: LogitsFn,
        **others: Any,
    ) -> tuple[Any, EBCState]:
        step = jax.tree.map(lambda u: -lr * u, updates)
        schedule = fraction**2 if config.target_schedule == "lr" else jnp.ones((), jnp.float32)
        state = state._replace(delta=jnp.where(clock == 0, hyper.target_kl, state.delta))
        if config.aggregate == "exact":
            state = _clip_exact(config, state, schedule, logits_fn, params, step)
        else:
            state = state._replace(beta=refreshed(config, state, clock, logits_fn, params, step))
            state = _clip_by_layers(config, state, schedule, logits_fn, params, step)
        measure = functools.partial(_measure, config, logits_fn, params, step, state)
        state = _control(config, state, clock, hyper.target_kl * schedule, measure)
        return jax.tree.map(lambda u: state.c * u, updates), state

    transform: Any = update  # optax's type of it does not know arguments that have to be given.
    return optax.GradientTransformationExtraArgs(init, transform)


def _clip_by_layers(
    config: EBCConfig, state: EBCState, schedule: Scalar, logits_fn: LogitsFn, params: Any, step: Any
) -> EBCState:
    """τ, S and c of the published budget."""
    budget = layer_budget(config, state.beta, step_norms(config, step)) * config.surrogate.factor(state.surrogate)
    tokens = jax.eval_shape(logits_fn, params).shape[0]
    tau = state.tau_scale * jnp.sqrt(4 * tokens * state.delta * schedule)
    return state._replace(tau=tau, budget=budget, c=_quotient(tau, budget))


def _clip_exact(
    config: EBCConfig, state: EBCState, schedule: Scalar, logits_fn: LogitsFn, params: Any, step: Any
) -> EBCState:
    """τ, S and c of one derivative along the whole step, and the divergence that the step with this c causes."""
    logits, change = jax.jvp(logits_fn, (params,), (step,))
    budget = jnp.sqrt(fisher_variance(logits, change).sum()) * config.surrogate.factor(state.surrogate)
    limit = state.tau_scale**2 * state.delta * schedule
    tau = jnp.sqrt(2 * len(logits) * limit)

    def caused(c: Scalar) -> Scalar:
        return mean_kl(logits, logits_fn(_moved(params, step, c)))

    c = _quotient(tau, budget)
    for _ in range(config.refine):
        kl = caused(c)
        c = jnp.where(kl > 0, jnp.minimum(c * jnp.sqrt(limit / kl), 1.0), c)
    c, kl = shrink_until(caused, c, limit)
    return state._replace(tau=tau, budget=budget, c=c, kl=kl)


def shrink_until(caused: Callable[[Scalar], Scalar], c: Scalar, limit: Scalar) -> tuple[Scalar, Scalar]:
    """The first of c, c', c'', … that causes a divergence of at most `limit`, and what it causes.

    c' = 0.9999·c·√(limit/KL(c)), which would do if KL were a square, but at least c/8, also where KL is no number.
    After `MOST_TRIES` of them comes 0, a step that changes nothing.
    """

    def above(carry: tuple[Scalar, Scalar, Scalar]) -> Bool[Array, ""]:
        return ~(carry[1] <= limit)

    def measure(carry: tuple[Scalar, Scalar, Scalar]) -> tuple[Scalar, Scalar, Scalar]:
        c, kl, tries = carry
        smaller = c * jnp.clip(jnp.nan_to_num(0.9999 * jnp.sqrt(limit / kl)), 1 / 8, 0.9999)
        c = jnp.where(tries == 0, c, jnp.where(tries <= MOST_TRIES, smaller, 0))
        return c, jnp.where(c > 0, caused(c), 0), tries + 1

    c, kl, _ = jax.lax.while_loop(above, measure, (c, jnp.full_like(c, jnp.inf), jnp.zeros_like(c)))
    return c, kl


def _quotient(tau: Scalar, budget: Scalar) -> Scalar:
    """min(1, τ/S), 1 where S is 0."""
    return jnp.where(budget > tau, tau / budget, 1.0)


def _moved(params: Any, step: Any, c: Scalar) -> Any:
    return jax.tree.map(lambda w, s: w + c * s, params, step)


def _measure(config: EBCConfig, logits_fn: LogitsFn, params: Any, step: Any, state: EBCState) -> tuple[Scalar, Scalar]:
    """Applied KL and ρ of the clipped step: for `exact` known already, else by running the probe before and after."""
    expected = state.c * state.budget
    if config.aggregate == "exact":
        tokens = jax.eval_shape(logits_fn, params).shape[0]
        return state.kl, jnp.where(expected > 0, jnp.sqrt(2 * tokens * state.kl) / expected, 1.0)
    before = logits_fn(params)
    after = logits_fn(_moved(params, step, state.c))
    return mean_kl(before, after), jnp.where(expected > 0, size_of_change(config, after - before) / expected, 1.0)


def _control(
    config: EBCConfig, state: EBCState, now: Clock, target: Scalar, measure: Callable[[], tuple[Scalar, Scalar]]
) -> EBCState:
    """Measures where it is due, and lets the loops act on what was measured."""
    controller = config.controller
    due = now % config.update_every == 0
    tick = (now % controller.period == 0) & controller.enable
    kl, rho = jax.lax.cond(due | tick, measure, lambda: (state.kl, state.rho))
    delta, error = controller(state.delta, state.error, target, kl)
    raw = rho * config.surrogate.factor(state.surrogate)
    acts = {
        "delta": (tick, delta),
        "error": (tick, error),
        "tau_scale": (due & config.guard.enable, config.guard(state.tau_scale, rho, now)),
        "surrogate": (due & config.surrogate.enable, config.surrogate(state.surrogate, raw, now)),
    }
    moved = {name: jnp.where(when, value, getattr(state, name)) for name, (when, value) in acts.items()}
    return state._replace(kl=kl, rho=rho, **moved)
