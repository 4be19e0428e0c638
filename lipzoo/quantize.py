"""`python -m lipzoo.quantize RUN OUT`: a checkpoint in fewer bits, and how far it is from the original."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from rich.console import Group
from rich.text import Text

from lipzoo.certify.fields import finite
from lipzoo.compare import Comparison, compare
from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Count
from lipzoo.devices.mesh import make_mesh
from lipzoo.models import AbstractModule
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.paths import UserPath
from lipzoo.system.progress import Wait, waiting
from lipzoo.system.streams import make_console
from lipzoo.system.terminal import guarded, program
from lipzoo.theory.weight import Weight, weights
from lipzoo.train.checkpoint import load, save_weights
from lipzoo.train.contents import note_recipe
from lipzoo.train.digests import Arrays
from lipzoo.train.evaluate import make_evaluate
from lipzoo.train.packed import PACKINGS, SCALE, Packing, decode, row_axis
from lipzoo.train.reading import run_of

OCTAVE = 2.0 ** (-np.arange(16) / 16)
"""Scales that are tried, in units of that which takes the largest entry of a row to the largest code."""
EVERYWHERE = (0, 4, 8, 12)
"""Those of them that are tried for all rows at once."""
SMALLEST = 2.0**-126
FormatName = Literal["int8", "float8_e4m3", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    run: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it; the newest step is taken. Or an exported file, or zoo:NAME."""
    out: Annotated[UserPath, tyro.conf.Positional]
    """Where to write the quantized run. Every tool takes it; no training can go on from it."""
    format: FormatName = "int8"
    """int8 and float8_e4m3: a scale for each row; bfloat16: entries rounded."""
    examples: Count = 1024
    """Test images, or windows of the test text, on which the distance from the original is measured."""


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized checkpoint beside its original.

    **Attributes:**

    - `comparison`: how far apart both can be at any input, weight by weight.
    - `sizes`: bytes on disk of the weights, before and after.
    - `before`, `after`: loss and accuracy on the whole test split.
    """

    format: str
    comparison: Comparison
    sizes: tuple[int, int]
    before: dict[str, float]
    after: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """A JSON object, laid out as docs/schema.md says."""
        return self.comparison.to_json() | {
            "format": self.format,
            "bytes": list(self.sizes),
            "original": finite(self.before),
            "quantized": finite(self.after),
        }

    def __rich__(self) -> Group:
        size, packed = self.sizes
        told = (
            f"Weights take {packed:,} bytes on disk instead of {size:,} ({packed / size:.0%}). On the whole test split "
            f"accuracy is {self.after['val_accuracy']:.2%} (before: {self.before['val_accuracy']:.2%}), loss "
            f"{self.after['val_loss']:.4f} (before: {self.before['val_loss']:.4f})."
        )
        return Group(self.comparison, Text(told))


def pack(model: AbstractModule, packing: Packing, watch: Wait | None = None) -> Arrays:
    """What is stored of a model: codes, scales, and what is left as it is (see `lipzoo.train.packed`)."""
    arrays: Arrays = {}
    for weight in weights(model):
        array, axis = np.asarray(weight.array), row_axis(weight)
        if axis is None:
            arrays[weight.name] = jnp.asarray(array)
            continue
        scale = scales(weight, axis, packing) if packing.largest is not None else np.ones(())
        arrays[weight.name] = jnp.asarray(packing.encode(array, scale))
        if packing.largest is not None:
            arrays[weight.name + SCALE] = jnp.asarray(scale)
        if watch is not None:
            watch.advance()
    return arrays


def scales(weight: Weight, axis: int, packing: Packing) -> Float[np.ndarray, "..."]:
    """The scale of each row that makes ‖Ŵ - W‖, which is proved, least among those tried, for each matrix.

    A deviation rises with the norm of each difference and with nothing else of it. Tried are scales by the largest
    entry, smaller ones of all rows alike, and for each row the one of least ‖ŵ - w‖₂: for the rows of a table, which
    are matrices of one column, that is the best.
    """
    values = np.asarray(weight.array, np.float64)
    tried = [*(_top(values, axis, packing) * OCTAVE[k] for k in EVERYWHERE), _least_errors(values, axis, packing)]
    best, least = tried[0], np.full(values.shape[:-2], np.inf)
    for scale in tried:
        scale = _admitted(scale, packing)
        norm = np.asarray(weight.geometry.distance(decode(packing.encode(values, scale), scale) - values))
        best = np.where((norm < least)[..., None, None], scale, best).astype(np.float32)
        least = np.minimum(norm, least)
    return best


def _admitted(scale: Float[np.ndarray, "..."], packing: Packing) -> Float[np.ndarray, "..."]:
    """Scales in float32, of which none makes a number that float32 does not have."""
    assert packing.largest is not None
    return np.clip(scale, SMALLEST, np.finfo(np.float32).max * (1 - 1e-6) / packing.largest).astype(np.float32)


def _top(values: Float[np.ndarray, "..."], axis: int, packing: Packing) -> Float[np.ndarray, "..."]:
    """The scales that take the largest entries to the largest code; 1 where all are zero."""
    top = abs(values).max(axis, keepdims=True) / packing.largest
    return np.where(top > 0, top, 1.0)


def _least_errors(values: Float[np.ndarray, "..."], axis: int, packing: Packing) -> Float[np.ndarray, "..."]:
    best = top = _top(values, axis, packing)
    least = np.full(top.shape, np.inf)
    for factor in OCTAVE:
        scale = _admitted(factor * top, packing)
        error = ((decode(packing.encode(values, scale), scale) - values) ** 2).sum(axis, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def quantize(run: Path, out: Path, kind: FormatName, examples: int, watch: Wait) -> Quantized:
    """Writes the newest checkpoint under `run` into the run `out` in another format, and compares both.

    **Raises:** UserError if there is none, `out` holds a run, or the data to measure on cannot be had.
    """
    loaded = load(run)
    if loaded.stored != "float32":
        raise UserError(f"{loaded.path} is stored as {loaded.stored} already: quantize the original")
    if not all(np.isfinite(np.asarray(w.array)).all() for w in weights(loaded.model)):
        raise UserError(f"{loaded.path} holds weights that are no numbers: nothing can be proved of it")
    if not loaded.path.is_file() and run_of(loaded.path).resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out} lies in the run itself: choose another directory")
    if (out / "recipe.json").exists() or (out / "checkpoints").exists():
        raise UserError(f"{out} already holds a run: choose another directory")
    evaluate = make_evaluate(loaded.recipe, make_mesh(), loaded.recipe.data.load(loaded.recipe.training.seed))
    arrays = pack(loaded.model, PACKINGS[kind], watch)
    if not all(np.isfinite(np.asarray(array, np.float32)).all() for array in arrays.values()):
        raise UserError(f"{kind} cannot hold the largest weights of {loaded.path}: choose another --format")
    try:
        out.mkdir(parents=True, exist_ok=True)
        note_recipe(out, loaded.recipe)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another directory") from error
    path = save_weights(out, loaded.step, arrays, loaded.recipe, kind)
    comparison = compare(loaded.path, path, examples)
    sizes = _bytes(loaded.path if loaded.path.is_file() else loaded.path / "model"), _bytes(path / "model")
    found = Quantized(kind, comparison, sizes, evaluate(loaded.model), evaluate(comparison.second.model))
    write_text(out / "quantization.json", json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder, *folder.rglob("*")) if path.is_file())


def _main() -> int:
    description = "Stores weights in fewer bits, and proves how far the network can be from the original."
    line = tyro.cli(CommandLine, prog=program(), description=description)
    if refusal := field_refusal(line):
        raise UserError(refusal)
    with waiting("quantizing", None) as wait:
        found = quantize(line.run, line.out, line.format, line.examples, wait)
    console = make_console()
    console.print(found)
    console.print(f"wrote {line.out}; next: python -m lipzoo.certify {line.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
