"""What roundings can do to the logits of a classifier of vectors, around inputs of any size."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.certify.deviation import Beside, stored
from lipzoo.models import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.functions import arithmetic
from lipzoo.theory.runs import Arithmetic
from lipzoo.theory.weight import Measure

GRID = 16
"""Sizes of inputs are rounded up to a power of 2^(1/16), so that few bounds are computed for all of them."""


class Rounding:
    """A classifier of vectors in the arithmetic that it runs in. `norms` are those of its weights."""

    def __init__(self, model: AbstractModule, norms: Measure, runs_in: Arithmetic):
        model = jax.tree.map(np.asarray, model)
        low = stored(model, runs_in.name)
        self.runs_in, self._norms, self._same = runs_in, norms, Beside(model, model)
        self._beside = self._same if low is model else Beside(model, low)
        self._off = functools.cache(self._pair_error)

    def off(self, size: float) -> float:
        """By how much a difference of two logits as it runs is off at most, for inputs of up to this RMS norm."""
        return self._off(math.ceil(GRID * math.log2(max(size, 1e-300))))

    def _pair_error(self, step: int) -> float:
        return pair_error(self._beside, self._norms, self.runs_in, 2 ** (step / GRID) * (1 + 2.0**-40))

    def exact(self, x: Float[np.ndarray, "n size"]) -> tuple[Float[np.ndarray, "n classes"], float]:
        """Logits in float64, and by how much differences of two of them are off, which is hardly anything."""
        size = float(np.sqrt((x.astype(np.float64) ** 2).mean(1)).max(initial=0.0)) * (1 + 1e-6)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda array: jnp.asarray(np.asarray(array), jnp.float64), self._same.first)
            logits = np.asarray(_many(wide, jnp.asarray(x, jnp.float64)))
            return logits, pair_error(self._same, self._norms, arithmetic("float64"), size)

    def logits(self, x: Float[np.ndarray, "n size"]) -> Float[np.ndarray, "n classes"]:
        """Logits as it runs. (Where tensor cores would round factors, they are those of float32.)"""
        if self.runs_in.name == "float64":
            return self.exact(x)[0]
        low = jnp.dtype("bfloat16" if self.runs_in.unit > 2.0**-24 else "float32")
        model = jax.tree.map(lambda array: jnp.asarray(array).astype(low), self._beside.second)
        return np.asarray(_many(model, jnp.asarray(x).astype(low)).astype(jnp.float32)).astype(np.float64)


def pair_error(beside: Beside, norms: Measure, runs_in: Arithmetic, size: float) -> float:
    """√2·√n·e: no difference of two entries is off by more than √2 times the ℓ₂ norm of what the vector is off by."""
    start = Bound.start(beside.first.takes, size, beside.runs(runs_in))  # pyright: ignore[reportArgumentType]
    end = beside.first.bound(start, norms).vector(type(beside.first).__name__)
    count = end.space.size  # pyright: ignore[reportAttributeAccessIssue]
    return math.sqrt(2 * count) * float(end.deviation) * (1 + 2.0**-40)


@jax.jit
def _many(model: AbstractModule, x: Float[Array, "n size"]) -> Float[Array, "n classes"]:
    return jax.vmap(model)(x)
