"""`python -m lipzoo.export RUN out.safetensors`: weights, what is proved of them, and how they were made: one file."""

import dataclasses
import importlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from lipzoo.certify.run import certificate_of, to_json
from lipzoo.certify.tighten import STEPS
from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Whole
from lipzoo.recipe.changes import OF_DIRECTORIES
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.unused import idle
from lipzoo.sweep.settings import fields_of, flags_of, value_of
from lipzoo.system.errors import UserError
from lipzoo.system.files import read_json
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import guarded, program
from lipzoo.system.version import VERSION
from lipzoo.theory.functions import Format
from lipzoo.theory.numbers import format_power
from lipzoo.train.exported import SUFFIX, write
from lipzoo.train.load import Loaded, Stored, load_stored
from lipzoo.train.reading import run_of


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    run: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it; the newest step is taken. Or an exported file, or zoo:NAME."""
    out: Annotated[UserPath, tyro.conf.Positional]
    """The file to write (.safetensors); one that is there is replaced once all of the new one is written."""
    average: bool = False
    """Export the mean of the run's weights (--ema) instead."""
    command: str | None = None
    """What trained it, to stand in the file (default: the recipe's line, with the flags that differ)."""
    arithmetic: Format | None = None
    """Format in which the network runs, whose rounding is covered (default: that in which it was trained)."""
    tighten: Whole = STEPS
    """Steps of a search for a smaller bound of a network of vectors, at most."""


def export(
    run: Path,
    out: Path,
    *,
    average: bool = False,
    command: str | None = None,
    tighten: int = STEPS,
    dtype: Format | None = None,
) -> dict[str, Any]:
    """Writes the newest checkpoint under `run` to the file `out` (see `lipzoo.train.exported`), certified anew.

    What `lipzoo evaluate` has written into the run goes with it, if it is about these weights.

    **Returns:** what is noted in the file.

    **Raises:** UserError if there is no checkpoint, it cannot be certified, or the file cannot be written.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"the file to write must end in {SUFFIX}, got {out}")
    stored, loaded = _read(run, average)
    certificate = to_json(certificate_of(loaded, tighten=tighten, dtype=dtype), loaded)
    notes = {
        "lipzoo": VERSION,
        "recipe": stored.recipe.to_json(),
        "step": str(stored.step),
        "weights": "average" if average else "model",
        "stored": stored.stored,
        "weights_sha256": loaded.sha256,
        "certificate": {**certificate, "checkpoint": out.name},
        **_optional("evaluation", _evaluation(stored, loaded, out.name, average)),
        **_optional("command", command or command_of(stored.recipe)),
    }
    write(out, {name: np.asarray(array) for name, array in stored.arrays.items()}, notes)
    return notes


def _read(run: Path, average: bool) -> tuple[Stored, Loaded]:
    if not average:
        return load_stored(run)
    stored, _ = load_stored(run)
    if not stored.recipe.training.ema:
        raise UserError(f"{run} keeps no mean of its weights: train it with --ema, or leave --average out")
    return load_stored(run, item="average")


def _optional(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _evaluation(stored: Stored, loaded: Loaded, name: str, average: bool) -> dict[str, Any] | None:
    """The evaluation.json beside the run, if it is about these weights; else None, which is said if there is one."""
    folder = run_of(stored.path)
    path = (folder / "ema" if average else folder) / "evaluation.json"
    if not path.exists():
        return None
    try:
        value = read_json(path)
        if value["weights_sha256"] == loaded.sha256:
            return {**value, "checkpoint": name}
        why = "is about other weights"
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"cannot be read ({error})"
    print(f"warning: {path} {why}, and is left out: run lipzoo evaluate again", file=sys.stderr)
    return None


def command_of(recipe: Recipe) -> str | None:
    """The shortest line that trains a recipe; None where it does not come with the library, under its own name."""
    try:
        base = importlib.import_module(f"recipes.{recipe.name}").RECIPE.complete()
    except (ImportError, AttributeError, TypeError, UserError):
        return None
    if (type(base.model), type(base.data)) != (type(recipe.model), type(recipe.data)):
        return None
    names = [name for name in fields_of(recipe) if value_of(recipe, name) != value_of(base, name)]
    setting = {n: value_of(recipe, n) for n in names if n not in OF_DIRECTORIES and not idle(n, recipe)}
    return shlex.join(["python", "-m", f"recipes.{recipe.name}", *flags_of(setting)])


def _main() -> int:
    description = "Writes trained weights with their certificate to one safetensors file."
    line = tyro.cli(CommandLine, prog=program(), description=description)
    if refusal := field_refusal(line):
        raise UserError(refusal)
    notes = export(
        line.run,
        line.out,
        average=line.average,
        command=line.command,
        tighten=line.tighten,
        dtype=line.arithmetic,
    )
    bound = format_power(notes["certificate"]["certified"]["log10_lipschitz"])
    clean = f", {notes['evaluation']['clean_accuracy']:.2%} clean" if "evaluation" in notes else ""
    print(f"wrote {line.out}: step {notes['step']} of {notes['recipe']['name']}, L = {bound}{clean}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
