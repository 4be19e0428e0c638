"""Formulas as they were published, to stand beside certificates. Those for transformers are *not* upper bounds."""

import math

import numpy as np

from lipzoo.models import GPT, MLP, AbstractModule
from lipzoo.theory.bound import Bound, weighted_sum
from lipzoo.theory.geometry import ENTRIES
from lipzoo.theory.numbers import Scalar, log_times, log_up
from lipzoo.theory.space import Tokens
from lipzoo.theory.weight import Measure, Weight, weights

GELU_SLOPE = 1.1289
"""What Newhouse et al. divide by for GELU."""


def published_bound(
    model: AbstractModule, start: Bound, certified: Bound, measure: Measure, window: int | None
) -> Bound | None:
    """The published bound of a model, or None where its kind has none.

    Of an MLP it is the certified one. `window`, the tokens of a sequence, enters LipsFormer's only.
    """
    if not isinstance(model, GPT):
        return certified if isinstance(model, MLP) else None
    config = model.config
    if config.architecture == "lipsformer":
        return None if window is None else _lipsformer(model, measure, window)
    plain = config.norm == "none" and config.residual == "convex" and config.activation == "gelu"
    return _lipschitz_gpt(model, start, measure) if plain and not config.qk_norm else None


def _lipschitz_gpt(model: GPT, start: Bound, measure: Measure) -> Bound:
    """Newhouse et al. 2025 (arXiv 2507.13338), section 4 and the code published with it.

    An attention layer counts as s‖W_O‖‖W_V‖(1 + 2‖W_Q‖‖W_K‖r²)/3 with norms of whole matrices, an MLP as
    ‖W_up‖‖W_down‖/1.1289. That is no bound: heads add up (see `Attention.bound`), GELU/1.1289 was 1-Lipschitz already
    (very nearly), the scale s belongs to the second term alone, and the blocks are walked from the last to the first.
    """
    alpha = model.config.residual_scale / (2 * model.config.depth)
    bound = model.embedding.bound(start, measure)
    for index in reversed(range(model.config.depth)):
        norm = _norms(model.stack.block(index), measure)
        value = log_up(norm["out"] * norm["v"] * model.config.attention_scale)
        spread = model.config.softmax_scale * (1 + 2 * norm["q"] * norm["k"] * bound.radius**2)
        attention = bound.grow(value, log_times(value, log_up(spread)))
        bound = weighted_sum((1 - alpha, alpha), (bound, attention))
        mlp = bound.scale(norm["up"] * norm["down"] / GELU_SLOPE)
        bound = weighted_sum((1 - alpha, alpha), (bound, mlp))
    return model.ends.bound(bound, measure)


def _lipsformer(model: GPT, measure: Measure, window: int) -> Bound:
    """Qi et al. 2023 (arXiv 2304.09856), theorems 1 and 2, for the ℓ₂ norm of a whole sequence of n tokens.

    Scaled cosine similarity attention has the constant 2n(n-1)ντ‖W_K‖₂/√ε + 2(n-1)ντ‖W_Q‖₂/√ε + 2nν‖W_V‖₂/√ε, taken
    here with the whole matrices of all heads, and a residual with strength α multiplies by 1 + α·Lip(f). The theorem is
    about a single head, so for several this is only what one would write down. It says nothing of sizes.
    """
    config, n = model.config, window
    center, bound = config.width / (config.width - 1), Bound.start(Tokens(config.width), math.inf)
    for index in range(config.depth):
        norm = _norms(model.stack.block(index), measure, spectral=True)
        cosine = config.softmax_scale * ((n - 1) * n * norm["k"] + (n - 1) * norm["q"]) + n * norm["v"]
        attention = 2 * cosine / math.sqrt(config.epsilon) * norm["out"]
        bound = bound.scale(1 + norm["attention.strength"] * center * norm["attention.center.gain"] * attention)
        mlp = GELU_SLOPE * norm["up"] * norm["down"]
        bound = bound.scale(1 + norm["mlp.strength"] * center * norm["mlp.center.gain"] * mlp)
    head = _spectral(model.head.weight, measure)
    return model.scale.bound(bound.scale(head), measure)


def _norms(block: AbstractModule, measure: Measure, *, spectral: bool = False) -> dict[str, Scalar]:
    """The norms of a block's weights by the ends of their names; the heads of q, k and v count as one matrix."""
    norm = _spectral if spectral else lambda weight, measure: np.max(measure(weight))
    return {weight.name.split(".", 2)[-1]: norm(_whole(weight), measure) for weight in weights(block)}


def _whole(weight: Weight) -> Weight:
    array = weight.array
    return weight if weight.geometry == ENTRIES else weight.with_array(array.reshape(-1, array.shape[-1]))


def _spectral(weight: Weight, measure: Measure) -> Scalar:
    """The ℓ₂ → ℓ₂ norm."""
    return np.max(measure(weight)) / weight.rms_factor
