"""Layers refuse weights whose norms are not those of what they multiply by; equal numbers may have several norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.layers.attention import Attention
from lipzoo.layers.convolution import Conv2d
from lipzoo.layers.embedding import Embedding
from lipzoo.layers.linear import Affine, Linear, Pointwise
from lipzoo.layers.pixels import Offset
from lipzoo.layers.potential import PotentialResidual
from lipzoo.layers.reparametrized.aol import AOL
from lipzoo.models import ReLU, Sequential
from lipzoo.theory.bound import Bound
from lipzoo.theory.convolution import Convolution
from lipzoo.theory.space import Symbols, Tokens, Vector
from lipzoo.theory.weight import Weight, exact_norm

KERNEL = Convolution((8, 8), 3)
SQUARE = jnp.eye(6) * 100


def bias(geometry):
    return Linear(Weight(SQUARE, "w"), Weight(jnp.ones((6, 1)), "w.bias", geometry))


CASES = {
    "linear": (lambda g: Linear(Weight(SQUARE, "w", g)), Vector((6,)), AOL),
    "kernel in a linear": (lambda g: Linear(Weight(jnp.ones((2, 18)), "w", g)), Vector((18,)), KERNEL),
    "pointwise": (lambda g: Pointwise(Weight(SQUARE, "w", g)), Vector((2, 2, 6)), AOL),
    "potential": (lambda g: PotentialResidual(Linear(Weight(SQUARE, "w", g)), ReLU(), 1.0), Vector((6,)), AOL),
    "gain": (lambda g: Affine(Weight(jnp.ones((6, 1, 1)), "w", g)), Vector((6,)), AOL),
    "bias": (bias, Vector((6,)), AOL),
    "offset": (lambda g: Offset(Weight(jnp.ones((24, 1)), "w", g)), Vector((2, 2, 6)), AOL),
    "table": (lambda g: Embedding(Weight(jnp.ones((3, 6, 1)), "w", g)), Symbols(3), AOL),
    "attention": (
        lambda g: Attention(*(Weight(jnp.eye(8), n, g) for n in "qkvo"), heads=2),
        Tokens(8),
        AOL,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_norm_of_something_else_is_refused(name):
    make, space, geometry = CASES[name]
    with pytest.raises(ValueError, match="geometry"):
        make(geometry).bound(Bound.start(space), exact_norm)


def test_equal_numbers_are_measured_as_what_they_are():
    """One kernel in two convolutions: with a stride of 2 its norm on this grid is another."""
    kernel = jnp.zeros((1, 9)).at[0, 4].set(1.0)
    layers = [
        Conv2d(Weight(kernel, "a", Convolution((8, 8), 3))),
        Conv2d(Weight(kernel, "b", Convolution((8, 8), 3, stride=2))),
    ]
    model = Sequential(layers)
    jacobian = np.asarray(jax.jacobian(model)(jnp.ones((8, 8, 1)))).reshape(16, 64)
    gain = np.linalg.norm(jacobian, 2) * np.sqrt(64 / 16)
    assert gain <= Certificate.of(model, space=Vector((8, 8, 1))).lipschitz * (1 + 1e-6)


def test_what_computes_something_else_is_no_part_of_a_potential():
    class Steep(ReLU):
        def __call__(self, x):
            return 3 * jax.nn.relu(x)

    class Turned(Linear):
        def __call__(self, x):
            return -super().__call__(x)

    with pytest.raises(TypeError, match="Steep"):
        PotentialResidual(Linear(Weight(SQUARE, "w")), Steep(), 1.0)
    with pytest.raises(TypeError, match="Turned"):
        PotentialResidual(Turned(Weight(SQUARE, "w")), ReLU(), 1.0)


@pytest.mark.parametrize("size", [1e-38, 3e-39, 1e-44, 0.0])
def test_no_bound_of_a_kernel_vanishes(size):
    geometry, array = Convolution((4, 4), 3), np.full((2, 18), size, np.float32)
    assert geometry.exact_norm(array) <= float(geometry.gram_norm(jnp.asarray(array)))
