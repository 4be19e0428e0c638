"""How far what runs can be from what is certified: by rounding, by other weights, or both."""

import dataclasses
import itertools

import jax
import numpy as np

from lipzoo.certify.measured import place_of
from lipzoo.layers.base import silent
from lipzoo.models import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import Scalar
from lipzoo.theory.precision import rounded
from lipzoo.theory.runs import Arithmetic, Runs
from lipzoo.theory.weight import Measure, Weight, bare, map_weights, weights


@dataclasses.dataclass(frozen=True, eq=False)
class Beside:
    """Two models of one architecture, in NumPy arrays: for any part of the first one's weights, the same part of the
    second one's, and norms of their difference, each computed once.

    A bound looks at weights as a whole, block by block, and head by head. Parts are known again by the memory that they
    lie in.

    **Raises:** ValueError if the models are of different architectures: they may differ in weights, caps and shares
    alone; or if a part does not say how far it can be off (`AbstractModule.deviates`).
    """

    first: AbstractModule
    second: AbstractModule
    _known: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, model in (("first", self.first), ("second", self.second)):
            object.__setattr__(self, name, jax.tree.map(np.ascontiguousarray, model))
        if names := silent(self.first):
            raise ValueError(f"{', '.join(names)} does not say how far what runs can be off: see `deviates`")
        shapes = [[(w.name, np.shape(w.array)) for w in weights(model)] for model in (self.first, self.second)]
        if shapes[0] != shapes[1]:
            raise ValueError(_different(*shapes))
        pairs = list(zip(weights(self.first), weights(self.second), strict=True))
        for one, other in pairs:
            if one.array.dtype != other.array.dtype:
                raise ValueError(f"{one.name} holds {one.array.dtype}, and {other.array.dtype} in the other model")
        if any(np.may_share_memory(a.array, b.array) for (a, _), (b, _) in itertools.combinations(pairs, 2)):
            object.__setattr__(self, "first", jax.tree.map(np.array, self.first))  # Each weight in a place of its own.
        if jax.tree.structure(bare(self.first)) != jax.tree.structure(bare(self.second)):
            raise ValueError("two architectures: weights of the same shapes are computed with otherwise")

    def part(self, weight: Weight) -> np.ndarray:
        """What stands in the second model where this stands in the first."""
        array = np.asarray(weight.array)
        for one, other in zip(weights(self.first), weights(self.second), strict=True):
            whole = np.asarray(one.array)
            offset = place_of(weight)[0] - place_of(one)[0]
            if 0 <= offset < whole.nbytes:
                return np.ndarray(array.shape, array.dtype, np.asarray(other.array), offset, array.strides)
        raise ValueError(f"{weight.name} is no part of the model's weights")

    def difference(self, weight: Weight) -> Scalar:
        """‖Ŵ - W‖."""
        return self._once("difference", weight)

    def absolute(self, weight: Weight) -> Scalar:
        """‖|Ŵ|‖."""
        return self._once("absolute", weight)

    def _once(self, what: str, weight: Weight) -> Scalar:
        key = what, place_of(weight)
        if key not in self._known:
            part, array = self.part(weight), np.asarray(weight.array)
            if what == "absolute":
                norm = weight.geometry.absolute_norm(part)
            elif np.array_equal(part, array):
                norm = np.zeros(array.shape[:-2])
            else:
                norm = weight.geometry.distance(part.astype(np.float64) - array.astype(np.float64))
            self._known[key] = np.asarray(norm)[()]
        return self._known[key]

    def runs(self, arithmetic: Arithmetic | None, tokens: int = 1) -> Runs:
        """The second model in place of the first, computed in `arithmetic`, on sequences of up to so many tokens."""
        return Runs(arithmetic, self.difference, self.absolute, tokens)


@dataclasses.dataclass(frozen=True)
class Running:
    """A network as it runs.

    **Attributes:**

    - `bound`: of its output, with how far that is from what is meant.
    - `tokens`: how many there may be in a sequence.
    """

    arithmetic: Arithmetic
    bound: Bound
    tokens: int

    @property
    def deviation(self) -> float:
        """e, an RMS norm; infinite where nothing is proved."""
        return float(self.bound.deviation)


def running(model: AbstractModule, start: Bound, norms: Measure, arithmetic: Arithmetic, tokens: int = 1) -> Running:
    """How far a model is, for inputs of `start`, from what is computed in a format with its weights as they are there.

    `norms` are those of the model's own weights (`ExactNorms` keeps what it measured).
    """
    model = jax.tree.map(np.asarray, model)
    beside = Beside(model, stored(model, arithmetic.name))
    start = Bound.start(start.space, start.domain.radius, beside.runs(arithmetic, tokens))
    return Running(arithmetic, beside.first.bound(start, norms), tokens)


def stored(model: AbstractModule, dtype: str) -> AbstractModule:
    """A model of NumPy arrays with the weights that a network computes with which runs in this format."""
    if dtype in ("float32", "tf32", "float64"):
        return model
    low = map_weights(lambda w: w.with_array(rounded(jax.numpy.asarray(w.array), dtype)), model)
    return jax.tree.map(lambda x, y: np.asarray(x).astype(y.dtype), low, model)


def _different(first: list, second: list) -> str:
    for one, other in zip(first, second, strict=False):
        if one != other:
            return f"two architectures: {one[0]} has the shape {one[1]}, where the other has {other[0]} of {other[1]}"
    return f"two architectures: of {len(first)} and {len(second)} weights"
