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

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from lipzoo.optim.ebc.control import ControllerConfig, GuardConfig, SurrogateConfig
from lipzoo.theory.weight import Weight, map_weights, weights

Aggregate = Literal["l1", "l2", "exact"]
LogitsFn = Callable[[Any], Float[Array, "tokens classes"]]
Scalar = Float[Array, ""]
PROBE_FRACTION = 32
"""The probe is this part of a batch unless told otherwise: per token, a JVP costs about as much as a training step."""
MOST_TRIES = 8
"""Smaller steps tried where the divergence is above δ; each may be an eighth of the one before."""
MOST_REFINED = 16
MATRIX_AXES = {"embedding": 3, "gain": 3}
"""Axes of a matrix that is not stacked, by role, where they are not 2: rows or entries of one table are one layer."""


@dataclasses.dataclass(frozen=True)
class EBCConfig:
    """The part of a recipe that describes the trust region. Options of β are not for `exact`."""

    enable: bool = False
    """Limit every step's effect on the predictions."""
    target_kl: float = 0.05
    """δ: the KL divergence between predictions before and after the optimizer's step (decay and constraint not
    counted), in nats per token of the probe: the most that exact allows, what l1 and l2 aim below."""
    target_schedule: Literal["constant", "lr"] = "constant"
    """Whether δ stays, or goes with the square of the learning rate's schedule."""
    aggregate: Aggregate = "l1"
    """l1, l2: the published budgets over layers, estimates that keep no limit; exact: one derivative along the whole
    update, and a measurement that holds every step within the target."""
    update_every: int = 20
    """Steps between measurements: of β for some layers, and of the applied KL."""
    probe_layers: int = 2
    """Layers whose β is measured each time, in turn."""
    beta_ema: float = 0.9
    """Weight of the old β in the moving average."""
    beta_huber_delta: float = 0.0
    """Largest change that a measurement may ask of β; 0 for no limit."""
    beta_full_sweep: int = 200
    """Steps between measurements of all layers; in the first of these periods also at steps 0, 1, 2, 4, 8, …."""
    safety: float = 1.05
    """Factor on β."""
    center_logits: bool = True
    """Take the mean over classes off the change of each token's logits before its norm."""
    refine: int = 0
    """For exact: how often each step corrects c, up or down, by the divergence that it really causes, before it is held
    within the target; once costs a forward pass of the probe."""
    include_embed_out: bool = False
    """Count embedding and head as layers too; exact always takes the whole update."""
    probe_tokens: int = 0
    """Tokens (or images) of the batch that form the probe; 0 for 1/32 of the batch."""
    controller: ControllerConfig = ControllerConfig()
    guard: GuardConfig = GuardConfig()
    surrogate: SurrogateConfig = SurrogateConfig()

    def refusal(self, model: Any) -> str | None:
        """Why this model cannot be trained so, or None."""
        if not self.enable:
            return None
        if not self.target_kl > 0:
            return f"--ebc.target-kl must be positive, got {self.target_kl}"
        for name in ("update_every", "probe_layers", "beta_full_sweep"):
            if getattr(self, name) < 1:
                return f"--ebc.{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
        if not 0 <= self.beta_ema < 1 or not 0 <= self.beta_huber_delta < math.inf:
            return "--ebc.beta-ema must lie between 0 and 1, and --ebc.beta-huber-delta be at least 0 and finite"
        if not 0 < self.safety < math.inf or self.probe_tokens < 0 or self.refine < 0:
            return "--ebc.safety must be positive and finite, --ebc.probe-tokens and --ebc.refine at least 0"
        if self.refine > MOST_REFINED:
            return f"--ebc.refine must be at most {MOST_REFINED}: every time is a forward pass, got {self.refine}"
        if self.refine and self.aggregate != "exact":
            return "--ebc.refine is for --ebc.aggregate exact"
        if self.aggregate != "exact" and not _layers(self, model):
            return "--ebc.aggregate l1 and l2 find no layer but embedding and head: add --ebc.include-embed-out"
        return self.controller.refusal(self.target_kl) or self.guard.refusal() or self.surrogate.refusal()

    def probe_shape(self, examples: int, tokens: int) -> tuple[int, int]:
        """Examples and tokens of each that the probe takes from a batch of so many examples of so many tokens."""
        wanted = self.probe_tokens or max(examples * tokens // PROBE_FRACTION, 1)
        length = min(wanted, tokens)
        return min(max(wanted // length, 1), examples), length

    def build(self) -> optax.GradientTransformationExtraArgs | None:
        """The transformation, or None if it is off."""
        return clip_by_predictions(self) if self.enable else None


class EBCState(NamedTuple):
    """What EBC remembers, and (from `tau` on) what it tells of the last step or measurement."""

    step: Int[Array, ""]
    beta: Float[Array, " layers"]
    target: Scalar
    """δ*. It is no constant of the compiled step, so that runs at several targets share one compilation."""
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


def clip_by_predictions(config: EBCConfig) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by c = min(1, τ/S), to be chained after an optimizer and before decay.

    The step is taken to be -lr × updates. `update` needs

    - `lr`: the learning rate of this step.
    - `fraction`: the same as a fraction of its peak, for `target_schedule lr`.
    - `logits_fn`: model → logits of the probe, shape (tokens, classes), scaled as in the loss.

    A layer is a weight matrix; a weight that is stacked over blocks counts as one layer a block.
    """

    def init(params: Any) -> EBCState:
        beta = jnp.zeros(sum(count for _, count in _layers(config, params).values()), jnp.float32)
        target, one, zero = config.target_kl, 1.0, 0.0
        scalars = [target, target, zero, one, one, one, one, one, zero, one]
        # Every field is an array of its own, since the compiled step is given its state's buffers.
        return EBCState(jnp.zeros((), jnp.int32), beta, *[jnp.full((), x, jnp.float32) for x in scalars])

    def update(
        updates: Any,
        state: EBCState,
        params: Any = None,
        *,
        lr: Scalar,
        fraction: Scalar,
        logits_fn: LogitsFn,
        **others: Any,
    ) -> tuple[Any, EBCState]:
        step = jax.tree.map(lambda u: -lr * u, updates)
        schedule = fraction**2 if config.target_schedule == "lr" else jnp.ones((), jnp.float32)
        clip = _clip_exact if config.aggregate == "exact" else _clip_by_layers
        state = clip(config, state, schedule, logits_fn, params, step)
        state = _control(config, state, schedule, functools.partial(_measure, config, logits_fn, params, step, state))
        return jax.tree.map(lambda u: state.c * u, updates), state._replace(step=state.step + 1)

    transform: Any = update  # optax's type of it does not know arguments that have to be given.
    return optax.GradientTransformationExtraArgs(init, transform)


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


def _clip_by_layers(
    config: EBCConfig, state: EBCState, schedule: Scalar, logits_fn: LogitsFn, params: Any, step: Any
) -> EBCState:
    """β, τ, S and c of the published budget."""
    beta = _refresh(config, state, logits_fn, params, step)
    budget = layer_budget(config, beta, _layer_norms(config, step)) * config.surrogate.factor(state.surrogate)
    tokens = jax.eval_shape(logits_fn, params).shape[0]
    tau = state.tau_scale * jnp.sqrt(4 * tokens * state.delta * schedule)
    return state._replace(beta=beta, tau=tau, budget=budget, c=_quotient(tau, budget))


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


def _layers(config: EBCConfig, params: Any) -> dict[str, tuple[int, int]]:
    """For each weight in scope, by name, its first layer and its number of layers; none for `exact`."""
    table: dict[str, tuple[int, int]] = {}
    first = 0
    for weight in weights(params):
        if config.aggregate != "exact" and (config.include_embed_out or weight.role not in ("embedding", "head")):
            stacked = np.shape(weight.array)[: -MATRIX_AXES.get(weight.role, 2)]
            table[weight.name] = (first, stacked[0] if stacked else 1)
            first += table[weight.name][1]
    return table


def _layer_norms(config: EBCConfig, step: Any) -> Float[Array, " layers"]:
    """The Frobenius norm of every layer of a step."""
    table = _layers(config, step)
    chosen = [weight for weight in weights(step) if weight.name in table]
    return jnp.concatenate([jnp.linalg.norm(w.array.reshape(table[w.name][1], -1), axis=1) for w in chosen])


def _one_layer(config: EBCConfig, step: Any, layer: Int[Array, ""]) -> Any:
    """The step of one layer, zero elsewhere."""
    table = _layers(config, step)

    def mask(weight: Weight) -> Weight:
        first, count = table.get(weight.name, (-1, 1))
        keep = first + jnp.arange(count, dtype=jnp.int32) == layer
        rows = weight.array.reshape(count, -1)
        return weight.with_array(jnp.where(keep[:, None], rows, 0).reshape(weight.array.shape))

    return map_weights(mask, step)


def layer_budget(config: EBCConfig, beta: Float[Array, " layers"], norms: Float[Array, " layers"]) -> Scalar:
    """S from β and the norms of the layers' steps."""
    terms = config.safety * beta * norms
    return terms.sum() if config.aggregate == "l1" else jnp.sqrt(terms.size * (terms**2).sum())


def fisher_variance(
    logits: Float[Array, "tokens classes"], change: Float[Array, "tokens classes"]
) -> Float[Array, " tokens"]:
    """Var_p(Δz) of each token, p = softmax(z)."""
    p = jax.nn.softmax(logits)
    centred = change - (p * change).sum(-1, keepdims=True)
    return (p * centred**2).sum(-1)


def mean_kl(before: Float[Array, "tokens classes"], after: Float[Array, "tokens classes"]) -> Scalar:
    """Mean KL(softmax(before) ‖ softmax(after)), as log E_p exp(d - E_p d): small values keep their digits."""
    log_p = jax.nn.log_softmax(before)
    p, change = jnp.exp(log_p), after - before
    change = change - (p * change).sum(-1, keepdims=True)
    small = jnp.clip(change, -1, 1)  # Large ones would overflow here, and need no care.
    near = jnp.log1p((p * (jnp.expm1(small) - small)).sum(-1))
    return jnp.where(jnp.abs(change).max(-1) < 1, near, jax.nn.logsumexp(log_p + change, axis=-1)).mean()


def _size(config: EBCConfig, change: Float[Array, "tokens classes"]) -> Scalar:
    """‖Δz‖ of the published budget."""
    return jnp.linalg.norm(change - change.mean(-1, keepdims=True) if config.center_logits else change)


def _refresh(
    config: EBCConfig, state: EBCState, logits_fn: LogitsFn, params: Any, step: Any
) -> Float[Array, " layers"]:
    """β after this step's measurements: none, a few layers in turn, or all of them.

    Where a weight starts at zero, the layers before it move nothing at first, so in the first period all layers are
    also measured at powers of two. The first β above zero enters the moving average with full weight.
    """
    now, layers = state.step, state.beta.size
    few = min(config.probe_layers, layers)

    def sweep(indices: Int[Array, " some"]) -> Float[Array, " layers"]:
        _, move = jax.linearize(logits_fn, params)
        norms = _layer_norms(config, step)

        def measure(layer: Int[Array, ""]) -> Scalar:
            return _size(config, move(_one_layer(config, step, layer))) / jnp.maximum(norms[layer], 1e-30)

        return state.beta.at[indices].set(_smooth(config, state.beta[indices], jax.lax.map(measure, indices)))

    early = (now < config.beta_full_sweep) & (now & (now - 1) == 0)
    everything = early | (now % config.beta_full_sweep == 0)
    turn = (now // config.update_every * few + jnp.arange(few, dtype=jnp.int32)) % layers
    branches = [lambda: state.beta, lambda: sweep(turn), lambda: sweep(jnp.arange(layers, dtype=jnp.int32))]
    return jax.lax.switch(jnp.where(everything, 2, (now % config.update_every == 0).astype(jnp.int32)), branches)


def _smooth(config: EBCConfig, old: Float[Array, " some"], new: Float[Array, " some"]) -> Float[Array, " some"]:
    """The moving average; its residual is limited as in Huber's estimate of a mean."""
    residual = new - old
    if config.beta_huber_delta:
        residual = jnp.clip(residual, -config.beta_huber_delta, config.beta_huber_delta)
    return jnp.where(old > 0, old + (1 - config.beta_ema) * residual, new)


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
    return mean_kl(before, after), jnp.where(expected > 0, _size(config, after - before) / expected, 1.0)


def _control(
    config: EBCConfig, state: EBCState, schedule: Scalar, measure: Callable[[], tuple[Scalar, Scalar]]
) -> EBCState:
    """Measures where it is due, and lets the loops act on what was measured."""
    now, controller = state.step, config.controller
    due = now % config.update_every == 0
    tick = (now % controller.period == 0) & controller.enable
    kl, rho = jax.lax.cond(due | tick, measure, lambda: (state.kl, state.rho))
    delta, error = controller(state.delta, state.error, state.target * schedule, kl)
    raw = rho * config.surrogate.factor(state.surrogate)
    acts = {
        "delta": (tick, delta),
        "error": (tick, error),
        "tau_scale": (due & config.guard.enable, config.guard(state.tau_scale, rho, now)),
        "surrogate": (due & config.surrogate.enable, config.surrogate(state.surrogate, raw, now)),
    }
    moved = {name: jnp.where(when, value, getattr(state, name)) for name, (when, value) in acts.items()}
    return state._replace(kl=kl, rho=rho, **moved)
