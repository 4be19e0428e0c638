"""What a change of logits does to predictions: the divergence, and its second-order part."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lipzoo.optim.ebc.state import Scalar


def fisher_variance(
    logits: Float[Array, "tokens classes"], change: Float[Array, "tokens classes"]
) -> Float[Array, " tokens"]:
    """Var_p(Δz) of each token, p = softmax(z)."""
    p = jax.nn.softmax(logits)
    centred = change - (p * change).sum(-1, keepdims=True)
    return (p * centred**2).sum(-1)


def mean_kl(before: Float[Array, "tokens classes"], after: Float[Array, "tokens classes"]) -> Scalar:
    """The mean of `kl`."""
    return kl(before, after).mean()


def kl(before: Float[Array, "*tokens classes"], after: Float[Array, "*tokens classes"]) -> Float[Array, "*tokens"]:
    """KL(softmax(before) ‖ softmax(after)), as log E_p exp(d - E_p d): small values keep their digits."""
    log_p = jax.nn.log_softmax(before)
    p, change = jnp.exp(log_p), after - before
    change = change - (p * change).sum(-1, keepdims=True)
    small = jnp.clip(change, -1, 1)  # Large ones would overflow here, and need no care.
    near = jnp.log1p((p * (jnp.expm1(small) - small)).sum(-1))
    return jnp.where(jnp.abs(change).max(-1) < 1, near, jax.nn.logsumexp(log_p + change, axis=-1))
