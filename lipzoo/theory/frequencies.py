"""Norms of convolutions, by their matrices at single frequencies.

A convolution of an image x on h×w pixels, with taps at the distances d = 0, …, k-1 less an offset p,

    y[i] = Σ_d K_d x[s·i + d],   i over every s-th pixel of both axes,

does to blocks of s×s pixels, d = s·q + r with 0 ≤ r < s, what a convolution without a stride does: its taps are the q,
its channels the pixels r of a block. On a torus of M×M' blocks the Fourier transform takes it apart into the matrices

    F(u, v) = Σ_d K_d exp(2πi(u q₁/M + v q₂/M')) in the columns of r,

so that its norm is the largest σ₁ of them; F(-u, -v) is the conjugate of F(u, v), and half of them are enough. What
pads with zeros is a part of a convolution on a larger torus: if M is at least the number of blocks plus the largest
|q|, no tap reaches round the torus from one pixel of the image to another. Neither leaving out outputs nor taking
inputs for zero makes a norm larger. (Sedghi et al. 2018, arXiv 1805.10408, for tori; the larger torus is folklore.)

If no two taps have the same r, as in patches, F(u, v) is K times phases of its columns: one matrix is enough.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from lipzoo.theory import norms
from lipzoo.theory.products import at_least_float32, unit_roundoff


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a convolution: taps, and the torus on which frequencies are taken.

    **Attributes:**

    - `kernel`, `stride`, `offset`: k, s and p.
    - `period`: M.
    """

    kernel: int
    stride: int
    offset: int
    period: int

    @property
    def distances(self) -> list[tuple[int, int]]:
        """(q, r) of each tap."""
        return [divmod(tap - self.offset, self.stride) for tap in range(self.kernel)]

    @functools.cached_property
    def waves(self) -> Complex[np.ndarray, "frequencies phases taps"]:
        """exp(2πi·uq/M) in the row of r, for each tap (q, r); off by at most 24·2⁻⁵³.

        The product uq is taken modulo M, and brought into [-M/2, M/2], before it is made an angle: so that has at most
        three roundings of up to π, and its cosine and sine one more each.
        """
        blocks, rests = (np.array(part) for part in zip(*self.distances, strict=True))
        turns = np.arange(self.period)[:, None] * blocks % self.period
        angles = 2 * np.pi * np.where(2 * turns > self.period, turns - self.period, turns) / self.period
        phases = np.arange(min(self.kernel, self.stride))[:, None] == np.unique(rests, return_inverse=True)[1]
        return np.where(phases, np.exp(1j * angles)[:, None], 0)


def largest_sums(kernel: Float[np.ndarray, "*batch o i k l"]) -> Float[np.ndarray, "*batch"]:
    """At least the norm of a matrix whose entries are, at most, sums of |K| over taps: their Frobenius norm."""
    return np.linalg.norm(abs(kernel).sum((-2, -1)), axis=(-2, -1)) * (1 + 2.0**-20)


def spectral_norm(
    kernel: Float[np.ndarray, "*batch o i k l"], rows: Axis, columns: Axis
) -> Float[np.ndarray, "*batch"]:
    """Rigorous upper bounds of the largest σ₁ of all F(u, v), in float64.

    An entry sums at most kl products of K, a wave along rows, and one along columns, in two steps. With t = 2⁻⁵³ each
    step is off by at most √2γ_(kl) or √2γ_(2kl), both waves by 24t: together by less than (kl + 64)·2⁻⁵²·Σ|K|, whose
    Frobenius norm is added. LAPACK's singular values of complex matrices are inflated as in
    `lipzoo.theory.norms.spectral_norm`, twice.

    **Raises:** ValueError if the kernel holds a NaN or an infinity.
    """
    kernel = np.asarray(kernel).astype(np.float64)
    if not np.isfinite(kernel).all():
        raise ValueError("the kernel holds NaN or infinite entries")
    taps = kernel.shape[-1] * kernel.shape[-2]
    half = np.einsum("...oikl,vsl->...voisk", kernel, columns.waves)
    sigma = np.zeros(kernel.shape[:-4])
    for wave in rows.waves[: rows.period // 2 + 1]:
        matrix = np.einsum("...voisk,rk->...voisr", half, wave)
        matrix = matrix.reshape(*matrix.shape[:-3], -1)
        found = np.linalg.svd(matrix, compute_uv=False)[..., 0].max(-1)
        sigma = np.maximum(sigma, found * (1 + 16 * max(matrix.shape[-2:]) * 2.0**-52))
    return np.asarray((sigma + (taps + 64) * 2.0**-52 * largest_sums(kernel)) * (1 + 2.0**-50))


@functools.lru_cache(maxsize=64)
def _real_waves(rows: Axis, columns: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part of the products of waves, shape (frequencies, phases, taps), of half of the torus."""
    waves = np.einsum("urk,vsl->uvrskl", rows.waves[: rows.period // 2 + 1], columns.waves)
    waves = waves.reshape(waves.shape[0] * waves.shape[1], -1, rows.kernel * columns.kernel)
    return waves.real, waves.imag


def gram_norm(
    kernel: Float[Array, "*batch o i taps"], rows: Axis, columns: Axis, squarings: int
) -> Float[Array, "*batch"]:
    """Upper bounds of the largest σ₁ of all F(u, v), rounding included: jittable, batched, differentiable.

    By Gram iteration of the real matrices (Re, -Im; Im, Re), which have the singular values of the complex ones. An
    entry is off by at most (1.5·taps + 4)·u·Σ|K|: γ_taps and one rounding of the waves, both for real and imaginary
    part. With x the excess of `lipzoo.theory.norms.gram_norm` on matrices of 2·out rows, and Σ|K| of norm at most
    √taps·‖K‖_F, it exceeds σ₁ by x and some 10⁻⁵ (`gram_excess`).
    """
    x, unit, nonzero = norms.scaled(kernel.astype(at_least_float32(kernel.dtype)).reshape(*kernel.shape[:-3], -1, 1))
    x, u, taps = x.reshape(kernel.shape), unit_roundoff(x.dtype), kernel.shape[-1]
    parts = [
        jnp.einsum("...oit,fpt->...foip", x, wave.astype(x.dtype), precision="highest")
        for wave in _real_waves(rows, columns)
    ]
    real, imaginary = (part.reshape(*part.shape[:-2], -1) for part in parts)
    pairs = jnp.concatenate([real, -imaginary], axis=-1), jnp.concatenate([imaginary, real], axis=-1)
    sigma = norms.gram_norm(jnp.concatenate(pairs, axis=-2), squarings).max(-1)
    sums = jnp.sum(jnp.abs(x), axis=-1)
    # The square root has an infinite slope at 0, which is no number times 0: the smallest number keeps it finite.
    size = jnp.sqrt(jnp.sum(sums**2, axis=(-2, -1)) + jnp.finfo(x.dtype).tiny) * (1 + 1e-3)
    # Numbers below the smallest normal one are taken for zero: so much each of them can be.
    vanished = float(jnp.finfo(x.dtype).tiny) * taps * math.prod(kernel.shape[-3:-1]) ** 0.5
    return jnp.where(nonzero, unit * (sigma + (1.5 * taps + 4) * u * size) * (1 + 8 * u) + vanished, 0)


def gram_excess(out: int, inner: int, taps: int, excess: float) -> float:
    """By how much `gram_norm` exceeds σ₁ at most, relative, if that of its matrices does so by `excess`.

    ‖F‖ is at least σ₁ of the matrix (out, inner·taps) of the kernel, since FF* is KKᵀ in the mean over a torus on which
    no two taps are the same. So Σ|K| has a norm of at most √(taps·min(out, inner·taps)) times ‖F‖.
    """
    u = unit_roundoff(jnp.float32)
    error = (1.5 * taps + 4) * u * math.sqrt(taps * min(out, inner * taps)) * (1 + 2e-3)
    return ((1 + excess) * (1 + error) + error) * (1 + 16 * u) - 1
