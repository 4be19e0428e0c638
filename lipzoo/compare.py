"""`python -m lipzoo.compare A B`: how far two checkpoints of one architecture can be from each other, at any input."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.console import Group
from rich.text import Text

from lipzoo.certify.deviation import Beside
from lipzoo.certify.fields import finite
from lipzoo.certify.measured import ExactNorms, place_of
from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Count
from lipzoo.models import AbstractModule
from lipzoo.report.tables import terminal_table
from lipzoo.system.errors import UserError
from lipzoo.system.paths import UserPath
from lipzoo.system.progress import waiting
from lipzoo.system.streams import make_console
from lipzoo.system.terminal import guarded, program
from lipzoo.system.version import VERSION
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import Scalar, round_digits
from lipzoo.theory.runs import Runs, zero
from lipzoo.theory.space import Vector
from lipzoo.theory.weight import Weight
from lipzoo.train.load import Loaded, load
from lipzoo.train.step import forward

TOGETHER = {1: 1024, 2: 16}
"""Examples that are looked at together, by the dimensions of their labels."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    first: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it; the newest step is taken. Or an exported file, or zoo:NAME."""
    second: Annotated[UserPath, tyro.conf.Positional]
    """Another one of the same architecture: fine-tuned, pruned, averaged, or trained from another seed."""
    examples: Count = 1024
    """Test images, or windows of the test text, on which the distance is measured: the first ones."""
    json: bool = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What is proved and seen of f_A - f_B.

    **Attributes:**

    - `bound`: of the first network's output, with the deviation of the second one: sup ‖f_A(x) - f_B(x)‖, an RMS norm
      (of the largest token of a sequence), in exact arithmetic.
    - `sizes`: what both outputs can be together, which is no less than their distance.
    - `parts`: the same where only one weight is that of the second network, and the norm by which that differs.
    - `largest`, `mean`: what was measured on `examples` examples, in float32.
    """

    first: Loaded
    second: Loaded
    bound: Bound
    sizes: float
    parts: tuple[tuple[str, float, float], ...]
    examples: int
    largest: float
    mean: float

    @property
    def proved(self) -> float:
        """sup ‖f_A - f_B‖."""
        return min(float(self.bound.deviation), self.sizes)

    def to_json(self) -> dict[str, Any]:
        """A JSON object, laid out as docs/schema.md says."""
        values = {
            "schema": 1,
            "lipzoo": VERSION,
            "first": str(self.first.path.absolute()),
            "second": str(self.second.path.absolute()),
            "first_weights_sha256": self.first.sha256,
            "second_weights_sha256": self.second.sha256,
            "largest_input_rms": float(self.bound.domain.radius),
            "proved_distance_rms": self.proved,
            "measured_examples": self.examples,
            "measured_largest_rms": self.largest,
            "measured_mean_rms": self.mean,
        }
        parts = [finite({"name": n, "difference": d, "alone_rms": e}) for n, d, e in self.parts]
        return finite(values) | {"weights": parts}

    def __rich__(self) -> Group:
        columns = {
            "weight": [name for name, _, _ in self.parts],
            "‖A - B‖": [_short(difference) for _, difference, _ in self.parts],
            "moves the output, alone, by at most": [_short(alone) for _, _, alone in self.parts],
        }
        vector = isinstance(self.bound.domain.space, Vector)
        inputs = f"inputs of RMS norm at most {round_digits(float(self.bound.domain.radius), 6, up=False)}"
        if not vector:
            inputs = "sequences of tokens"
        told = (
            f"For all {inputs}: ‖f_A(x) - f_B(x)‖ ≤ {_short(self.proved)} in RMS norm"
            f"{'' if vector else ' of the largest token'}, computed exactly. On {self.examples:,} test "
            f"{'images' if vector else 'windows'} it was at most {_short(self.largest)}, in the mean "
            f"{_short(self.mean)}."
        )
        return Group(terminal_table(columns, "Where it comes from"), Text(told))


def _short(value: float) -> str:
    return round_digits(value, 4) if math.isfinite(value) else "∞"


def compare(
    first: Path, second: Path, examples: int = 1024, watch: Callable[[int, int], None] = lambda done, count: None
) -> Comparison:
    """Compares the newest checkpoints under two directories.

    **Raises:** UserError if these are of two architectures, or the data of the first one cannot be had.
    """
    one, other = load(first), load(second)
    try:
        beside, norms = Beside(one.model, other.model), ExactNorms()
        bound = _bound(beside.first, norms, beside.runs(None))
        sizes = sum(float(_bound(model, norms).radius) for model in (beside.first, beside.second)) * (1 + 2.0**-50)
    except ValueError as error:
        raise UserError(f"{one.path} and {other.path} cannot be compared: {error}") from error
    places = beside.first.matrices()
    parts = []
    for index, place in enumerate(places):
        alone = _bound(beside.first, norms, Runs(difference=_only(beside, place)))
        parts.append((place.name, float(np.max(beside.difference(place))), float(alone.deviation)))
        watch(index + 1, len(places))
    return Comparison(one, other, bound, sizes, tuple(parts), *_measured(one, other, examples))


def _bound(model: AbstractModule, norms: ExactNorms, runs: Runs | None = None) -> Bound:
    space = model.takes
    if space is None:
        raise ValueError("the model does not say what it takes")
    return model.bound(Bound.start(space, 1.0, runs), norms)


def _only(beside: Beside, place: Weight) -> Callable[[Weight], Scalar]:
    """The differences of one weight, and of its parts."""
    start, end = place_of(place)[0], place_of(place)[0] + np.asarray(place.array).nbytes

    def difference(weight: Weight) -> Scalar:
        return beside.difference(weight) if start <= place_of(weight)[0] < end else zero(weight)

    return difference


def _measured(one: Loaded, other: Loaded, most: int) -> tuple[int, float, float]:
    """(examples, largest, mean) of the RMS norm of f_A - f_B."""
    test = one.recipe.data.load(one.recipe.training.seed).tests["val"]
    together, distances = TOGETHER[test.label.ndim], []
    run = jax.jit(lambda model, x: forward(model, x, one.recipe.data.white, "float32"))
    count = min(most, len(test.label))
    for start in range(0, count, together):
        x = np.asarray(test.input[np.minimum(np.arange(start, start + together), count - 1)])
        apart = np.asarray(run(one.model, x)).astype(np.float64) - np.asarray(run(other.model, x))
        distances.append(np.sqrt((apart**2).mean(-1)).reshape(len(x), -1)[: count - start])
    found = np.concatenate(distances)
    return count, float(found.max(initial=0.0)), float(found.mean())


def _main() -> int:
    description = "Proves how far two checkpoints of one architecture can be from each other."
    line = tyro.cli(CommandLine, prog=program(), description=description)
    if refusal := field_refusal(line):
        raise UserError(refusal)
    with waiting("comparing", None) as wait:
        found = compare(line.first, line.second, line.examples, wait.show)
    if line.json:
        print(json.dumps(found.to_json(), indent=2, allow_nan=False))
    else:
        make_console().print(found)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
