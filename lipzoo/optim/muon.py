"""Muon: steepest descent in the RMS→RMS norm.

optax has `optax.contrib.scale_by_muon`; this one differs in iterating on the small Gram matrix of long matrices (see
`lipzoo.theory.msign`: less than half of the operations on long matrices, counted in
`tests/test_msign.py`), in scaling by √(out/in) so that every
update has unit RMS→RMS norm, and in the supremum that it states for its updates.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike, Float, Int

from lipzoo.optim.adam import scale_by_adam
from lipzoo.optim.base import Optimizer, Spread, Transform
from lipzoo.optim.hyper import Hyper, Number
from lipzoo.theory import msign
from lipzoo.theory.weight import Weight, map_weights

Momentum = Callable[[Hyper, Int[Array, ""]], Float[Array, ""]]


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
) -> Transform:
    """Replaces each gradient G by √(out/in)·msign(M), M ← βM + (1-β)G.

    With Nesterov momentum, msign is taken of βM + (1-β)G with the new M. The result solves
    max ⟨M, U⟩ over ‖U‖ ≤ 1 in the RMS→RMS norm, as far as the polynomial goes: ‖U‖ ≤ `Muon.update_sup`.

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
    return Transform(init, transform)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Orthogonalized momentum, whose step has a known norm. `embedding_adam` leaves the embedding to Adam."""

    modular: ClassVar[bool] = True
    polynomial: msign.PolynomialName = "six-row"
    msign_dtype: str = "float32"
    nesterov: bool = False
    momentum_warmup: int = 0
    embedding_adam: bool = False
    embed_inflation: float = 16.0

    @property
    def numbers(self) -> tuple[str, ...]:
        start = ("momentum_start",) if self.momentum_warmup else ()
        return "beta1", *start, *(("embedding_beta1", "beta2") if self.embedding_adam else ())

    def transform(self, spread: Spread) -> Transform:
        muon = scale_by_muon(
            msign.POLYNOMIALS[self.polynomial],
            beta=self._momentum,
            nesterov=self.nesterov,
            dtype=jnp.dtype(self.msign_dtype),
            embed_inflation=self.embed_inflation,
            spread=spread,
        )
        if not self.embedding_adam:
            return muon
        adam = scale_by_adam("embedding_beta1")
        return optax.partition({True: adam, False: muon}, functools.partial(map_weights, self._by_adam))

    def update_sup(self, weight: Weight) -> float:
        """That of the polynomial, rounding included."""
        sup = msign.sup(msign.POLYNOMIALS[self.polynomial]) * (1 + msign.ROUNDING_MARGIN)
        return math.inf if self._by_adam(weight) else sup

    def _by_adam(self, weight: Weight) -> bool:
        return self.embedding_adam and weight.place == "embedding"

    def _momentum(self, hyper: Hyper, clock: Int[Array, ""]) -> Number:
        """β after so many steps."""
        if not self.momentum_warmup:
            return hyper.beta1
        progress = jnp.minimum(clock.astype(jnp.float32) / self.momentum_warmup, 1)
        return hyper.momentum_start + progress * (hyper.beta1 - hyper.momentum_start)
