"""Products: values and derivatives of both modes against einsum, whatever is batched."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.layers.product import product

SHAPES = [
    ((5, 7), (3, 7), 0),
    ((5, 3), (7, 3), 0),
    ((2, 4, 6), (9, 6), 0),
    ((6,), (4, 6), 0),
    ((2, 5, 3), (2, 4, 3), 1),
]


def reference(x, w, batch):
    """Without a product of the library."""
    if batch:
        return jnp.einsum("b...k,bjk->b...j", x, w)
    return jnp.einsum("...k,jk->...j", x, w)


@pytest.mark.parametrize(("x_shape", "w_shape", "batch"), SHAPES)
def test_value_and_derivatives_are_those_of_einsum(x_shape, w_shape, batch, getkey):
    x, w, dx, dw = (jax.random.normal(getkey(), shape) for shape in (x_shape, w_shape, x_shape, w_shape))

    def both(function):
        value, change = jax.jvp(lambda x, w: function(x, w, batch), (x, w), (dx, dw))
        gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(function(x, w, batch))), argnums=(0, 1))(x, w)
        curved = jax.grad(lambda w: jnp.sum(jax.grad(lambda x: jnp.sum(function(x, w, batch) ** 2))(x) * dx))(w)
        return value, change, *gradient, curved

    for ours, theirs in zip(both(product), both(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("x_shape", "w_shape", "batch"), SHAPES)
@pytest.mark.parametrize(
    "axes", [axes for axes in itertools.product((None, 0, -1), repeat=2) if any(a is not None for a in axes)]
)
def test_batches_of_either_or_both_are_many_products(x_shape, w_shape, batch, axes, getkey):
    def drawn(shape, axis):
        return jax.random.normal(getkey(), shape if axis is None else (4, *shape) if axis == 0 else (*shape, 4))

    x, w = drawn(x_shape, axes[0]), drawn(w_shape, axes[1])

    def both(function):
        def loss(x, w):
            return jnp.sum(jnp.sin(jax.vmap(lambda x, w: function(x, w, batch), in_axes=axes)(x, w)))

        each = jax.vmap(jax.grad(lambda x, w: jnp.sum(jnp.sin(function(x, w, batch))), argnums=(0, 1)), in_axes=axes)
        return loss(x, w), *jax.grad(loss, argnums=(0, 1))(x, w), *each(x, w)

    for ours, theirs in zip(both(product), both(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_low_precision_is_added_up_in_what_is_asked_for(getkey):
    x, w = (jax.random.normal(getkey(), shape).astype(jnp.bfloat16) for shape in ((3, 64), (5, 64)))
    assert product(x, w).dtype == jnp.bfloat16
    wide = product(x, w, 0, jnp.float32)
    np.testing.assert_allclose(wide, np.asarray(x, np.float64) @ np.asarray(w, np.float64).T, rtol=1e-5, atol=1e-5)
    gradients = jax.grad(lambda x, w: jnp.sum(product(x, w, 0, jnp.float32)), argnums=(0, 1))(x, w)
    assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("inner", "out"), [(4, 16), (16, 4)])
def test_the_narrower_of_both_is_turned_around(inner, out):
    """What is contracted over its first axis on the left is what libraries copy."""
    x, w = jnp.ones((32, inner)), jnp.ones((out, inner))
    jaxpr = jax.make_jaxpr(jax.grad(lambda w: jnp.sum(product(x, w) ** 2)))(w).jaxpr
    turned = [
        e for e in jaxpr.eqns if e.primitive.name == "dot_general" and e.params["dimension_numbers"][0][0] == (0,)
    ]
    assert [e.invars[0].aval.shape[-1] for e in turned] == [min(inner, out)]
