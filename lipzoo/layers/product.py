"""x·Wᵀ, whose gradients turn around the smaller operand.

The gradient of W contracts the rows of the cotangent g with those of x. Libraries of matrix products want the
contracted axis last on the left and first on the right, so one of the two is copied with its axes exchanged. As jax
writes that gradient it is always g: on a CPU an MLP's hidden layer, or the scores of attention, together with the
elementwise function that made it, which then writes with long strides (measured on GELU's derivative: nine times
slower). Here it is whichever is narrower. It is a primitive, so that both modes of differentiation and batching work.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, DTypeLike, Float

product_p = Primitive("product")


def product(
    x: Float[Array, "*batch_and_rows inner"],
    w: Float[Array, "*batch out inner"],
    batch: int = 0,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch_and_rows out"]:
    """Σₖ x[b, …, k]·w[b, j, k], b the first `batch` axes of both, added up and returned in `dtype` (by default x's)."""
    return product_p.bind(x, w, batch=batch, dtype=jnp.dtype(x.dtype if dtype is None else dtype))


def _dot(x: Array, w: Array, *, batch: int, dtype: Any) -> Array:
    """The product as jax has it."""
    axes = tuple(range(batch))
    dimensions = ((x.ndim - 1,), (w.ndim - 1,)), (axes, axes)
    return jax.lax.dot_general(x, w, dimensions, preferred_element_type=dtype)


def _shape(x: Any, w: Any, *, batch: int, dtype: Any) -> ShapedArray:
    return ShapedArray((*x.shape[:-1], w.shape[-2]), dtype)


def _of_x(g: Array, x: Any, w: Array, *, batch: int, dtype: Any) -> Array:
    """The cotangent of x: Σⱼ g[b, …, j]·w[b, j, k]."""
    axes = tuple(range(batch))
    image = jax.lax.dot_general(g, w.astype(g.dtype), (((g.ndim - 1,), (batch,)), (axes, axes)))
    return image.astype(x.aval.dtype)


def _of_w(g: Array, x: Array, w: Any, *, batch: int, dtype: Any) -> Array:
    """The cotangent of w: Σ over rows of g[b, …, j]·x[b, …, k], the narrower of the two on the left."""
    left, right = (array.reshape(*array.shape[:batch], -1, array.shape[-1]) for array in (g, x.astype(g.dtype)))
    axes = tuple(range(batch))
    dimensions = ((batch,), (batch,)), (axes, axes)
    if left.shape[-1] <= right.shape[-1]:
        return jax.lax.dot_general(left, right, dimensions).astype(w.aval.dtype)
    turned = jax.lax.optimization_barrier(jax.lax.dot_general(right, left, dimensions))  # Or XLA exchanges them again.
    return turned.mT.astype(w.aval.dtype)


def _batched(arrays: Any, axes: Any, *, batch: int, dtype: Any) -> tuple[Array, int]:
    """A batch of x alone is so many more rows; otherwise it is one more axis of both."""
    (x, w), (x_axis, w_axis) = arrays, axes
    if w_axis is None and not batch:
        return product(jnp.moveaxis(x, x_axis, 0), w, 0, dtype), 0
    size = w.shape[w_axis] if x_axis is None else x.shape[x_axis]
    x, w = (
        jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in ((x, x_axis), (w, w_axis))
    )
    return product(x, w, batch + 1, dtype), 0


product_p.def_impl(jax.jit(_dot, static_argnames=("batch", "dtype")))
product_p.def_abstract_eval(_shape)
ad.defbilinear(product_p, _of_x, _of_w)
batching.primitive_batchers[product_p] = _batched
mlir.register_lowering(product_p, mlir.lower_fun(_dot, multiple_results=False))
