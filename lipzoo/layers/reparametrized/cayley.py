"""Orthogonal layers by the Cayley transform (Trockman & Kolter 2021, arXiv 2104.07167)."""

import contextlib
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lipzoo.layers.reparametrized.base import UnitLinear, column, finite, raw
from lipzoo.theory.geometry import Raw
from lipzoo.theory.norms import spectral_norm
from lipzoo.theory.products import at_least_float32, gamma, identity_like

UNIT = 2.0**-53


class Orthogonal(Raw):
    """Q = [2N - I; -2VN], N = (I + A)⁻¹, A = U - Uᵀ + VᵀV, of raw numbers [U; V] lying tall; transposed for wide ones.

    **Proof.** I + A has the symmetric part I + VᵀV ≽ I, so it has an inverse, of norm at most 1. Q(I + A) = [I - A;
    -2V], and A + Aᵀ = 2VᵀV, so that (I + A)ᵀQᵀQ(I + A) = (I - A)ᵀ(I - A) + 4VᵀV = (I + A)ᵀ(I + A): QᵀQ = I.
    """

    def unit(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch out in"]:
        x = array.astype(at_least_float32(array.dtype))
        q = _cayley(x if _is_tall(array) else x.mT)
        return q if _is_tall(array) else q.mT

    def unit_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """σ₁(Q̂) of a computed Q̂, and how far that is from Q: Q̂ - Q = RN with R = Q̂(I + A) - [I - A; -2V], so by at
        most ‖R‖_F, since ‖N‖ ≤ 1.

        A is off by at most E = γ(|U| + |Uᵀ| + |Vᵀ||V|), which moves R by (|Q̂| + I)E; products in R are off by
        γ(|Q̂|(I + |A|) + |[I - A; -2V]|).
        """
        x = finite(array)
        x = x if _is_tall(array) else x.mT
        with np.errstate(all="ignore"), contextlib.suppress(np.linalg.LinAlgError):
            q, off = _with_error(x)
            if np.isfinite(off).all():
                return np.asarray(spectral_norm(q) + off)
        return np.full(x.shape[:-2], np.inf)  # So large that I is lost beside A, or beyond float64.

    def exact_unit(self, array: Float[np.ndarray, "out in"]) -> tuple[Float[np.ndarray, "out in"], float] | None:
        x = finite(array)
        with np.errstate(all="ignore"), contextlib.suppress(np.linalg.LinAlgError):
            q, off = _with_error(x if _is_tall(array) else x.mT)
            if np.isfinite(off):
                return (q if _is_tall(array) else q.mT), float(off)
        return None


def _with_error(
    x: Float[np.ndarray, "*batch l s"],
) -> tuple[Float[np.ndarray, "*batch l s"], Float[np.ndarray, "*batch"]]:
    """(Q̂, ‖R‖_F at most)."""
    size, terms = x.shape[-1], gamma(sum(x.shape[-2:]) + 8, UNIT)
    eye, u, v = np.eye(size), x[..., :size, :], x[..., size:, :]
    a = u - u.mT + v.mT @ v
    error = terms * (abs(u) + abs(u).mT + abs(v).mT @ abs(v))
    right = np.concatenate([eye - a, -2 * v], axis=-2)
    q = np.linalg.solve((eye + a).mT, right.mT).mT
    rest = abs(q @ (eye + a) - right) + terms * (abs(q) @ (eye + abs(a)) + abs(right)) + abs(q) @ error
    rest[..., :size, :] += error
    off = np.sqrt((rest**2).sum((-2, -1))) * (1 + 4 * math.prod(x.shape[-2:]) * UNIT) + 2.0**-900
    return q, np.asarray(off)


def _is_tall(array: Array | np.ndarray) -> bool:
    return array.shape[-2] >= array.shape[-1]


def _cayley(x: Float[Array, "*batch l s"]) -> Float[Array, "*batch l s"]:
    """Q of [U; V]."""
    size = x.shape[-1]
    u, v = x[..., :size, :], x[..., size:, :]
    eye = identity_like(u)
    inverse = jnp.linalg.inv(eye + u - u.mT + jnp.matmul(v.mT, v, precision="highest"))
    return jnp.concatenate([2 * inverse - eye, -2 * jnp.matmul(v, inverse, precision="highest")], axis=-2)


CAYLEY = Orthogonal()


def cayley(
    out_size: int, in_size: int, *, name: str, share: float, key: PRNGKeyArray, bias: bool = False
) -> UnitLinear:
    """x ↦ √(out/in)·Qx + b with Q semi-orthogonal. Raw numbers are at first such a matrix, with σ₁ = 1."""
    scale = math.sqrt(in_size / out_size)
    return UnitLinear(raw(key, out_size, in_size, name, share, CAYLEY, scale), column(out_size, name, share, bias))
