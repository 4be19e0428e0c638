"""How an array is a family of matrices, and what follows: its norms, its steepest direction, its layers.

Optimizers, constraints, measures and EBC ask a weight's geometry, so that a new kind of array is a class here.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.theory import distances, norms

Map = Callable[[Float[Array, "*batch out in"]], Float[Array, "*batch out in"]]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Arrays of shape (..., out, in), each matrix measured by its RMS→RMS norm σ₁·√(in/out).

    - `layer_axes`: the axes of one layer; an axis before them is that of a stack.
    - `single`: whether a matrix has one singular value, its norm, so that all a constraint can do is to divide.
    - `bounded`: whether it stands in bounds at all, and can have a cap.
    - `row_axis`: the axis along which the entries of one row lie; None where each row is one entry.
    """

    layer_axes: ClassVar[int] = 2
    single: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    row_axis: ClassVar[int | None] = -1

    def rms_factor(self, shape: Sequence[int]) -> float:
        """√(in/out): a spectral norm times this is a norm."""
        return norms.rms_factor(*shape[-2:])

    def check_multiplied(self, name: str) -> None:
        """Raises ValueError unless a norm is at least that of the array itself: as of what is multiplied by it."""

    def exact_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """The norms in float64, rounded up (see `lipzoo.theory.norms.rms_norm`)."""
        return norms.rms_norm(array)

    def distance(self, difference: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """Upper bounds of the norms of a difference of two arrays, in float64."""
        if type(self).exact_norm is not Geometry.exact_norm:  # Another norm than that of matrices.
            return self.exact_norm(difference)
        return np.asarray(distances.product_norm(difference) * self.rms_factor(difference.shape) * (1 + 2.0**-50))

    def absolute_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """Upper bounds of the norms of the matrices of absolute values, in float64.

        A geometry with a norm of its own is taken to be one whose matrices hold the array's entries, as convolutions.
        """
        if type(self).exact_norm is not Geometry.exact_norm:
            return self.exact_norm(abs(np.asarray(array, np.float64)))
        return np.asarray(distances.absolute_norm(array) * self.rms_factor(array.shape) * (1 + 2.0**-50))

    def gram_norm(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
        """Upper bounds of the norms by Gram iteration: for use inside jit, differentiable."""
        return norms.gram_norm(array) * self.rms_factor(array.shape)

    def steepest(
        self, gradient: Float[Array, "*batch out in"], sign: Map, inflation: float
    ) -> Float[Array, "*batch out in"]:
        """The U that maximizes ⟨G, U⟩ over ‖U‖ ≤ 1, √(out/in)·msign(G), as far as `sign` goes."""
        return sign(gradient) / self.rms_factor(gradient.shape)

    def hold(self, array: Float[Array, "*batch out in"], constrain: Map) -> Float[Array, "*batch out in"]:
        """The array with `constrain` applied to its matrices, scaled so that a norm is a spectral norm."""
        factor = self.rms_factor(array.shape)
        return constrain(array * factor) / factor

    def cut(self, array: Float[np.ndarray, "*batch out in"], cap: float) -> Float[np.ndarray, "*batch out in"]:
        """The nearest array, in float64, whose norms are at most `cap`, but for rounding."""
        u, sigma, vt = np.linalg.svd(array, full_matrices=False)
        return (u * np.minimum(sigma, cap / self.rms_factor(array.shape))[..., None, :]) @ vt

    def roundings(self, shape: Sequence[int]) -> float:
        """By how many u of the norm rounding every entry once changes it at most: ‖W‖_F ≤ √s‖W‖, s the smaller side."""
        return math.sqrt(min(shape[-2:]))

    def moves(self, shape: Sequence[int], moves: Callable[[Sequence[int], float], float], norm: float) -> float:
        """By how much `hold` moves an array of at most this norm; `moves` says it of a matrix (`Constraint.moves`)."""
        return moves(shape, norm)


class Dense(Geometry):
    """A matrix; with more axes, as many matrices, each by itself: those of heads, or of blocks."""


class Column(Geometry):
    """A bias: a matrix of one column, whose norm is its RMS norm."""

    single = True
    row_axis = None


class Rows(Geometry):
    """A table of rows, shape (count, size, 1): each row is a matrix of one column."""

    layer_axes = 3
    single = True
    row_axis = -2

    def steepest(
        self, gradient: Float[Array, "*batch out in"], sign: Map, inflation: float
    ) -> Float[Array, "*batch out in"]:
        """Each row divided by its own RMS norm, or multiplied by `inflation` if it is smaller than the inverse of that.

        So rows that hardly occur are not moved by noise.
        """
        size = jnp.sqrt(jnp.mean(gradient**2, axis=-2, keepdims=True))
        return gradient / jnp.maximum(size, 1 / inflation)


class Separate(Geometry):
    """A matrix of which each row is measured by itself: the largest of ‖w_j‖₂√in, the RMS→∞ norm.

    It is an upper bound of the RMS→RMS norm, as no RMS is above the largest entry. For a classifier's last layer, whose
    differences of two logits alone decide: rows may then be alike as they need, with |z_j - z_k| ≤ ‖w_j - w_k‖₂‖Δx‖₂.
    Rows that are held at their cap are the normalized last layer of Singla et al. 2022 (arXiv 2108.04062).
    """

    single = True

    def rms_factor(self, shape: Sequence[int]) -> float:
        """√in: the ℓ₂ norm of a row times this is a norm."""
        return norms.rms_factor(1, shape[-1])

    def exact_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """The largest norm of a row in float64, rounded up."""
        return np.asarray(norms.rms_norm(np.asarray(array)[..., None, :]).max(-1))

    def gram_norm(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
        """The largest norm of a row, rounded up."""
        return super().gram_norm(array[..., None, :]).max(-1)

    def steepest(
        self, gradient: Float[Array, "*batch out in"], sign: Map, inflation: float
    ) -> Float[Array, "*batch out in"]:
        """Each row divided by its own norm, as the largest of them is to be at most 1."""
        rows = gradient[..., None, :]
        return (sign(rows) / self.rms_factor(gradient.shape))[..., 0, :]

    def hold(self, array: Float[Array, "*batch out in"], constrain: Map) -> Float[Array, "*batch out in"]:
        """The array with `constrain` applied to every row."""
        return super().hold(array[..., None, :], constrain)[..., 0, :]

    def cut(self, array: Float[np.ndarray, "*batch out in"], cap: float) -> Float[np.ndarray, "*batch out in"]:
        """The nearest array, in float64, whose rows are at most as long as the cap."""
        return super().cut(array[..., None, :], cap)[..., 0, :]


class Entries(Geometry):
    """Factors of single entries, shape (size, 1, 1): each is a 1×1 matrix."""

    layer_axes = 3
    single = True
    row_axis = None


class Offsets(Geometry):
    """What is added to attention logits whatever the input: in no bound, and never constrained."""

    bounded = False
    row_axis = None

    def distance(self, difference: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """The largest entries: by so much logits can differ."""
        return np.asarray(abs(difference).max(axis=(-2, -1)))


class Raw(Geometry, abc.ABC):
    """Numbers that a matrix is computed from whose norm is at most 1, whatever they are (`layers.reparametrized`).

    That matrix is `BELOW` times `unit`, and norms are its σ₁: exact ones are measured, of the matrix that exact
    arithmetic would give of the stored numbers. These are never constrained, and moved by optimizers as a matrix.
    """

    bounded = False

    def check_multiplied(self, name: str) -> None:
        """Raises ValueError."""
        raise ValueError(f"{name} holds what a matrix is computed from: only layers that compute it take that geometry")

    @abc.abstractmethod
    def unit(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch out in"]:
        """A matrix Q with σ₁ ≤ 1, in float32 at least, that rounding may lift above that."""

    @abc.abstractmethod
    def unit_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """σ₁ of `unit` in exact arithmetic, in float64 and rounded up. Raises ValueError for NaN and infinities."""

    def exact_unit(self, array: Float[np.ndarray, "out in"]) -> tuple[Float[np.ndarray, "out in"], float] | None:
        """`unit` in exact arithmetic, in float64, and by how much that is off in σ₁ at most; None where nobody knows.

        **Raises:** ValueError for NaN and infinities.
        """
        return None

    def effective(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch out in"]:
        """The matrix that is computed with."""
        return BELOW * self.unit(array)

    def exact_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        return np.asarray(BELOW * self.unit_norm(array) * (1 + 2.0**-50))

    def gram_norm(self, array: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
        return norms.gram_norm(self.effective(array))

    def distance(self, difference: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """Of the stored numbers, as a matrix."""
        return DENSE.distance(difference)

    def absolute_norm(self, array: Float[np.ndarray, "*batch out in"]) -> Float[np.ndarray, "*batch"]:
        """Of the stored numbers, as a matrix."""
        return DENSE.absolute_norm(array)

    def hold(self, array: Float[Array, "*batch out in"], constrain: Map) -> Float[Array, "*batch out in"]:
        """The same."""
        return array

    def cut(self, array: Float[np.ndarray, "*batch out in"], cap: float) -> Float[np.ndarray, "*batch out in"]:
        """Raises ValueError."""
        raise ValueError("a matrix that is computed to have a norm of at most 1 has no cap: leave its weight free")


BELOW = 1 - 2.0**-20
"""What matrices of norm 1 are multiplied by, so that what is measured of them, with its margin, is at most 1."""
DENSE, COLUMN, ROWS, SEPARATE, ENTRIES, OFFSETS = Dense(), Column(), Rows(), Separate(), Entries(), Offsets()
