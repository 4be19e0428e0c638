"""What a constraint is."""

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from lipzoo.theory import norms, products
from lipzoo.theory.excess import largest_gram_excess
from lipzoo.theory.numbers import Scalar
from lipzoo.theory.weight import Weight, gram_norm

Cap = float | Float[Array, ""]
"""A norm not to be exceeded; an array in a step that was compiled for any."""


class Step(eqx.Module):
    """What one optimizer step did to one weight, as far as a constraint may want to know.

    **Attributes** (all in RMS→RMS units, batched like the matrix or scalar):

    - `update_norm`: an upper bound η of the norm of the update, without decay.
    - `decay`: the fraction d by which weight decay shrank the weight before the update was added.
    - `key`: randomness for estimates.
    """

    update_norm: Scalar | Float[Array, "..."] = 0.0
    decay: Scalar | Float[Array, "..."] = 0.0
    key: PRNGKeyArray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraint(abc.ABC):
    """A map of singular values, applied to a weight after each optimizer step.

    `caps` says that the map uses the cap, `guarantees` that the norm is at most `cap(...)` after every step that
    `refusal` admits, in the arithmetic in which it runs: either the map's own rounding is bounded (soft-cap), or the
    last thing it does is `normalize`. `project_dtype` is the precision of the matrix iterations.
    """

    project_dtype: str = "float32"
    caps: ClassVar[bool] = True
    guarantees: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(self, matrix: Float[Array, "*batch out in"], *, cap: Cap, step: Step) -> Float[Array, "*batch out in"]:
        """The constrained matrix. `matrix` is in RMS→RMS units: scaled by √(in/out), so that its norm is σ₁."""

    def hold(self, weight: Weight, cap: Cap, step: Step) -> Weight:
        """One weight constrained under a cap, whatever its own is."""
        constrain = functools.partial(self, cap=cap, step=step)
        return weight.with_array(weight.geometry.hold(weight.array, constrain))

    def apply(self, weight: Weight, step: Step | None = None) -> Weight:
        """One weight constrained; a weight with an infinite cap is free of constraints that need one.

        Without a `step`, what brought the weight where it is, wherever that may be, is taken to be one.
        """
        if self.caps and math.isinf(weight.cap):
            return weight
        if step is None:
            step = Step(jnp.maximum(gram_norm(weight) - weight.cap, 0))
        return self.hold(weight, weight.cap, step)

    def refusal(self, cap: float, update_norm: float) -> str | None:
        """Why an update of this norm would break the promise, or None. Unbounded updates come as infinity."""
        return None

    def moves(self, shape: Sequence[int], cap: float, norm: float) -> float:
        """By how much, in norm, it moves a matrix of at most this norm, rounding included; infinite if nobody knows."""
        return math.inf

    def cap(self, sigma_max: float, update_norm: float, decay: float) -> float:
        """The norm that weights are held under or aimed at; infinite if there is none.

        `update_norm` bounds the norm of an update and `decay` is the weight decay, both per unit of learning rate ×
        share.
        """
        return sigma_max if self.caps else float("inf")


def forming(shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> float:
    """By how much, relative, rounding can lift the norm of a weight to which an update is added: 16 roundings of all
    entries, each at most u√s of the norm, s the smaller side, and as many of scalars."""
    return 16 * (math.sqrt(min(shape[-2:])) + 1) * products.unit_roundoff(dtype)


def lowered(cap: Cap, moved: Cap, every: int, shape: Sequence[int]) -> Cap:
    """The cap g that a map has to be given which acts every k-th step, for all k steps to end under `cap`.

    `moved` is the sum of the norms η of the k - 1 updates that follow. Each takes a norm b to at most (b + η)(1 + ρ),
    ρ what `forming` says, whatever is decayed. So the last is at most (g + Ση)(1 + ρ)^(k-1), and (1 + ρ)^(1-k) ≥
    1 - (k-1)ρ; the sum itself is rounded.
    """
    if every == 1:
        return cap
    return cap * (1 - (every - 1) * forming(shape) - 8 * products.unit_roundoff(jnp.float32)) - moved * (1 + 1e-5)


def target(cap: Cap, matrix: Float[Array, "*batch out in"]) -> Cap:
    """The cap less what single roundings of the entries can add, so that the stored result is under the cap.

    Rounding all entries of a matrix once changes its norm by at most u‖W‖_F ≤ u√s‖W‖, s the smaller side. After the
    norm is known there are two of them (the division here and that by √(in/out) when it is stored) and a few roundings
    of scalars; (4√s + 16)u is taken off.
    """
    return cap * (1 - (4 * math.sqrt(min(matrix.shape[-2:])) + 16) * products.unit_roundoff(matrix.dtype))


def aim(cap: Cap, matrix: Float[Array, "*batch out in"], squarings: int = norms.GRAM_SQUARINGS) -> Cap:
    """Where a map should end that `normalize` is to judge: so far under the cap that the bound, too, is under it."""
    return target(cap, matrix) / (1 + norms.gram_excess(matrix.shape, matrix.dtype, squarings))


def normalize(
    matrix: Float[Array, "*batch out in"], *, cap: Cap, squarings: int = norms.GRAM_SQUARINGS
) -> Float[Array, "*batch out in"]:
    """W/max(1, ‖W‖/cap), with ‖W‖ bounded from above by Gram iteration, rounding included (`norms.gram_norm`).

    So the result is under the cap whatever W was, and whatever rounding did to it. It is computed from W scaled by a
    power of two, since the norm of a finite matrix may be beyond the largest number.
    """
    x, unit, _ = norms.scaled(matrix)
    goal, bound = target(cap, matrix), norms.gram_norm(x, squarings)
    above = bound * (unit.astype(bound.dtype) / goal) > 1
    shrunk = x * (goal / bound).astype(x.dtype)[..., None, None]
    return jnp.where(above[..., None, None], shrunk, matrix)


def normalize_moves(shape: Sequence[int], cap: float, norm: float, squarings: int = norms.GRAM_SQUARINGS) -> float:
    """By how much `normalize` moves a matrix of at most this norm.

    What is above goal/(1 + x), x the largest excess of the bound, may be divided by bound/goal, which moves it by
    ‖W‖(1 - goal/bound) ≤ ‖W‖ - goal/(1 + x), and rounded as `target` says.
    """
    reach = norm * (1 + 2.0**-50)
    excess = largest_gram_excess(shape, "float32", squarings)
    rounding = (4 * math.sqrt(min(shape[-2:])) + 16) * products.unit_roundoff("float32")
    shrunk = reach - cap * (1 - rounding) / (1 + excess)
    return max(0.0, shrunk) + rounding * reach


def brought_down(
    matrix: Float[Array, "*batch out in"], norm: Float[Array, "*norms"], limit: Cap
) -> tuple[Float[Array, "*batch out in"], Float[Array, "*norms"]]:
    """(W, k) with k at most `limit` and ‖W‖ ≤ k: where k is above it, W is divided by ‖W‖_F/limit."""
    x, unit, _ = norms.scaled(matrix)
    entries = math.prod(matrix.shape[-2:])  # A sum of n squares comes out at least (1-u)ⁿ of what it is.
    inflation = math.exp((entries / 2 + 16) * products.unit_roundoff(matrix.dtype))
    size = jnp.sqrt(jnp.sum(x**2, axis=(-2, -1))) * inflation
    shrunk = x * jnp.minimum(limit / size, unit)[..., None, None]
    above = norm > limit
    return jnp.where(jnp.broadcast_to(above, unit.shape)[..., None, None], shrunk, matrix), jnp.where(
        above, limit * (1 + 1e-3), norm
    )


def wide_product(left: Float[Array, "*b s s"], matrix: Float[Array, "*b m n"]) -> Float[Array, "*b m n"]:
    """The small symmetric matrix from `products.small_gram` applied on its side: LW, or WL if W is tall."""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    factors = (left, matrix) if wide else (matrix, left)
    return jnp.matmul(*factors, precision=precision(matrix))


def precision(matrix: Array) -> jax.lax.Precision | None:
    """Full float32 products where float32 is asked for (accelerators round to fewer bits otherwise)."""
    return jax.lax.Precision.HIGHEST if matrix.dtype.itemsize >= 4 else None
