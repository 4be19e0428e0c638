"""What training makes small, for an example of class y with logits z.

All are multiples of the cross-entropy ℓ(u) = log Σⱼ exp(uⱼ - u_y) of t(z - m), with a temperature t and margins m that
the right logit is asked to be above the others by; so a logit has to be ahead by what a change of the input could undo
before the loss lets go of it.

- `cross-entropy`: the same margin for all classes. With `label_smoothing` s the labels are (1-s)·1_y + s/classes.
- `annealed`: (1 - p)^γ·ℓ, p = exp(-ℓ) the probability of the right class: what is nearly certain gets no more
  gradient, so that capacity goes to the others (Lai et al. 2025, arXiv 2505.15174, with γ = 5).
- `pairwise`: the margin of each pair of classes in proportion to its own constant D_yj = ‖w_y - wⱼ‖₂·L, w the rows of
  the last matrix and L the constant of what is before it, by which it is certified (Hu et al. 2023, arXiv 2301.12549):
  m_yj = m·‖w_y - wⱼ‖₂/(√2·σ), σ the largest singular value that the cap admits, since no D_yj is above √2·σ·L.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lipzoo.optim.hyper import Hyper, Number
from lipzoo.recipe.training import LossName
from lipzoo.theory.weight import Weight, weights

Logits = Float[Array, "*batch classes"]
NEAR = 1e-12
"""Rows whose distance has a square below this fraction of their own are taken to be the same."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a compiled step has to know of a loss; its numbers come with `Hyper`.

    **Attributes:**

    - `asks`: whether there is a margin. `smooths`: whether labels are smoothed.
    """

    name: LossName = "cross-entropy"
    asks: bool = False
    smooths: bool = False

    def __call__(
        self, model: Any, logits: Logits, labels: Int[Array, "*batch"], hyper: Hyper
    ) -> Float[Array, "*batch"]:
        """The loss of each example, in nats times what weighs it. `model` is what the logits are of."""
        # For a few classes one-hot products are one fused loop forward and one backward; a gather is a dozen of them.
        one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        asked = logits + self._margins(model, one_hot, hyper) if self.asks else logits
        ahead = jnp.asarray(hyper.temperature, logits.dtype) * asked
        smooth = optax.smooth_labels(one_hot, jnp.asarray(hyper.smoothing, logits.dtype)) if self.smooths else one_hot
        loss = optax.softmax_cross_entropy(ahead, smooth)
        if self.name != "annealed":
            return loss
        hard = optax.softmax_cross_entropy(ahead, one_hot) if self.smooths else loss
        return jnp.power(-jnp.expm1(-hard), jnp.asarray(hyper.annealing, logits.dtype)) * loss

    def _margins(self, model: Any, one_hot: Logits, hyper: Hyper) -> Logits:
        """What is added to logits: less for the right class, or more for each other one."""
        if self.name != "pairwise":
            return -jnp.asarray(hyper.margin, one_hot.dtype) * one_hot
        head = last(model)
        relative = distances(head.array.astype(jnp.float32)) / largest_distance(head, hyper.caps[head.name])
        return jnp.matmul(one_hot, (hyper.margin * relative).astype(one_hot.dtype))


def last(model: Any) -> Weight:
    """The matrix that gives the logits."""
    return next(weight for weight in weights(model) if weight.place == "head")


def largest_distance(head: Weight, cap: Number) -> Float[Array, ""]:
    """√2·σ: two rows of a matrix that is under its cap, or whose rows are, are no farther apart."""
    classes, features = head.array.shape
    return math.sqrt(2 * classes / features) * jnp.asarray(cap)


def distances(rows: Float[Array, "classes features"]) -> Float[Array, "classes classes"]:
    """‖wⱼ - wₖ‖₂, whose slope is taken to be 0 where it is 0."""
    gram = jnp.matmul(rows, rows.T, precision="highest")
    size = jnp.diagonal(gram)[:, None] + jnp.diagonal(gram)[None, :]
    square = size - 2 * gram
    apart = square > NEAR * size
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1)), 0)
