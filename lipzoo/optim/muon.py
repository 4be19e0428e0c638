"""Muon: steepest descent in the RMS→RMS norm.

optax has `optax.contrib.scale_by_muon`; this one differs in iterating on the small Gram matrix of long matrices (see
`lipzoo.theory.msign`: less than half of the operations on long matrices, counted in
`tests/test_msign.py`), in scaling by √(out/in) so that every
update has unit RMS→RMS norm, and in the supremum that it states for its updates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, DTypeLike, Float, Int

from lipzoo.optim.hyper import Hyper
from lipzoo.theory import msign
from lipzoo.theory.weight import Weight, map_weights

Momentum = Callable[[Hyper, Int[Array, ""]], Float[Array, ""]]
Spread = Callable[[Callable[..., Array]], Callable[..., Array]]


class MuonState(NamedTuple):
    """The momentum, an exponential moving average of gradients without bias correction."""

    momentum: Any


def scale_by_muon(
    rows: msign.Polynomial,
    *,
    beta: Momentum,
    nesterov: bool,
    dtype: DTypeLike,
    embed_inflation: float,
    spread: Spread = lambda function: function,
) -> optax.GradientTransformationExtraArgs:
    """Replaces each gradient G by √(out/in)·msign(M), M ← βM + (1-β)G.

    With Nesterov momentum, msign is taken of βM + (1-β)G with the new M. The result solves
    max ⟨M, U⟩ over ‖U‖ ≤ 1 in the RMS→RMS norm, as far as the polynomial goes: ‖U‖ ≤ `update_sup(rows)`.

    Each row of an embedding is divided by its own RMS norm, or multiplied by `embed_inflation` if it is smaller than
    the inverse of that, so that tokens that hardly occur are not moved by noise.

    `beta` gives β from the `hyper` and the `clock`, the steps done so far, that `update` is given. `spread` makes of a
    function of matrices one that several devices share (see `lipzoo.devices.mesh.spread`).

    Jordan et al. 2024; Large et al. 2024 (arXiv 2405.14813).
    """

    def init(params: Any) -> MuonState:
        return MuonState(optax.tree.zeros_like(params))

    sign = spread(lambda matrix: msign.msign(matrix, rows, dtype))

    def orthogonalize(weight: Weight) -> Weight:
        return weight.with_array(weight.geometry.steepest(weight.array, sign, embed_inflation))

    def update(
        updates: Any, state: Any, params: Any = None, *, hyper: Hyper, clock: Int[Array, ""], **others: Any
    ) -> tuple[Any, MuonState]:
        decay = beta(hyper, clock)
        momentum = optax.tree.update_moment(updates, state.momentum, decay, 1)
        direction = optax.tree.update_moment(updates, momentum, decay, 1) if nesterov else momentum
        return map_weights(orthogonalize, direction), MuonState(momentum)

    transform: Any = update  # optax's type of it does not know arguments that have to be given.
    return optax.GradientTransformationExtraArgs(init, transform)


def update_sup(rows: msign.Polynomial) -> float:
    """The largest RMS→RMS norm of an update by `scale_by_muon`, rounding included."""
    return msign.sup(rows) * (1 + msign.ROUNDING_MARGIN)
