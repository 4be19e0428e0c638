"""The published budget: how much each layer's step can move the logits, measured in turn."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lipzoo.optim.ebc.config import EBCConfig, layer_table
from lipzoo.optim.ebc.control import Clock
from lipzoo.optim.ebc.state import EBCState, LogitsFn, Scalar
from lipzoo.theory.weight import Weight, map_weights, weights


def step_norms(config: EBCConfig, step: Any) -> Float[Array, " layers"]:
    """The Frobenius norm of every layer of a step."""
    table = layer_table(config, step)
    chosen = [weight for weight in weights(step) if weight.name in table]
    return jnp.concatenate([jnp.linalg.norm(w.array.reshape(table[w.name][1], -1), axis=1) for w in chosen])


def _one_layer(config: EBCConfig, step: Any, layer: Int[Array, ""]) -> Any:
    """The step of one layer, zero elsewhere."""
    table = layer_table(config, step)

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


def size_of_change(config: EBCConfig, change: Float[Array, "tokens classes"]) -> Scalar:
    """‖Δz‖ of the published budget."""
    return jnp.linalg.norm(change - change.mean(-1, keepdims=True) if config.center_logits else change)


def refreshed(
    config: EBCConfig, state: EBCState, now: Clock, logits_fn: LogitsFn, params: Any, step: Any
) -> Float[Array, " layers"]:
    """β after this step's measurements: none, a few layers in turn, or all of them.

    Where a weight starts at zero, the layers before it move nothing at first, so in the first period all layers are
    also measured at powers of two. The first β above zero enters the moving average with full weight.
    """
    layers = state.beta.size
    few = min(config.probe_layers, layers)

    def sweep(indices: Int[Array, " some"]) -> Float[Array, " layers"]:
        _, move = jax.linearize(logits_fn, params)
        norms = step_norms(config, step)

        def measure(layer: Int[Array, ""]) -> Scalar:
            return size_of_change(config, move(_one_layer(config, step, layer))) / jnp.maximum(norms[layer], 1e-30)

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
