"""`python -m lipzoo.evaluate RUN [RUN …]`: clean, certified and attacked accuracy of image classifiers."""

import dataclasses
import json
import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from lipzoo.certify.tighten import STEPS
from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Count, Seed, Whole
from lipzoo.evaluate.attack import Strength
from lipzoo.evaluate.evaluation import Evaluation, fraction
from lipzoo.evaluate.run import Effort, alarm, evaluate, write
from lipzoo.evaluate.texts import evaluate_prompt, write_prompt
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.paths import UserPath
from lipzoo.system.streams import make_console
from lipzoo.system.terminal import guarded, program
from lipzoo.theory.functions import Format
from lipzoo.train.reading import run_of


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    checkpoint_dirs: Annotated[tuple[UserPath, ...], tyro.conf.Positional]
    """Runs, their checkpoints folders, or steps in them; of each the newest step is taken. Or exported files, or
    zoo:NAME."""
    epsilons: tuple[str, ...] | None = None
    """ℓ₂ distances of pixels in [0, 1], as numbers or fractions (default: 36, 72, 108, 255 /255); with --prompt, RMS
    distances of embedded tokens (default: 0.001, 0.01, 0.1)."""
    prompt: str | None = None
    """Of a model of text: bound the next token after this prompt, around it and globally."""
    substitutions: Whole = 1
    """Of a prompt: bound what any so many tokens in the places of others can do; 0 for not."""
    images: Whole = 200
    """Test images, the first ones, that are looked at one by one: bounds around each, and attacks; 0 for none."""
    local: bool = True
    """Bound the model around each of these images, where radii are larger."""
    attack: bool = True
    """Attack these images."""
    tightness: bool = True
    """Look for large gains of the whole model and of each layer, to stand beside the bounds."""
    arithmetic: Format | None = None
    """Format in which the network runs, whose rounding is covered (default: that in which it was trained)."""
    tighten: Whole = STEPS
    """Steps of a search for smaller bounds, at most."""
    steps: Count = 40
    """Steps of the projected gradient, for each distance and restart."""
    restarts: Count = 3
    """Starts of the projected gradient: the image, and random points around it."""
    boundary_steps: Count = 100
    """Steps of the search for the nearest input of another class."""
    box: bool = True
    """Try only images with pixels in [0, 1]; certificates hold without that too."""
    seed: Seed = 0
    """Seed of the starts."""
    report: UserPath | None = None
    """Write one page about all of these runs to this file (.html)."""
    json: bool = False
    """Print JSON: of one run as in its evaluation.json, of several a list of these."""

    def distances(self) -> tuple[float, ...]:
        """The ε as numbers. Raises UserError if one is none, or not positive."""
        usual = ("0.001", "0.01", "0.1") if self.prompt is not None else ("36/255", "72/255", "108/255", "255/255")
        values = []
        for text in usual if self.epsilons is None else self.epsilons:
            try:
                value = float(Fraction(text))
            except (ValueError, ZeroDivisionError, OverflowError):
                raise UserError(f"--epsilons takes numbers and fractions such as 36/255, got {text!r}") from None
            if not 0 < value < math.inf:
                raise UserError(f"--epsilons must be positive and finite, got {text}")
            values.append(value)
        if not values:
            raise UserError("--epsilons needs at least one distance")
        return tuple(sorted(set(values)))


def _main() -> int:
    description = "Evaluates what bounds buy: certified and attacked accuracy of images; bounds around a prompt."
    line = tyro.cli(CommandLine, prog=program(), description=description)
    if refusal := field_refusal(line):
        raise UserError(refusal)
    if not line.checkpoint_dirs:
        raise UserError("give the directory of a run, or of several")
    distances = line.distances()
    if line.prompt is not None:
        return _prompts(line, distances)
    strength = Strength(line.steps, line.restarts, line.boundary_steps, line.box)
    effort = Effort(line.images, line.local, line.attack, line.tightness, strength, line.seed, line.tighten)
    found, status = [], 0
    for directory in line.checkpoint_dirs:
        evaluation = evaluate(directory, distances, effort, line.arithmetic)
        folder = run_of(evaluation.loaded.path)
        try:
            paths = write(evaluation, folder)
            status = max(status, alarm(evaluation, folder))
        except OSError as error:
            print(f"warning: cannot write to {folder} ({error.strerror})", file=sys.stderr)
            paths = []
        found.append(evaluation)
        if not line.json:
            make_console().print(evaluation)
            if paths:
                print("wrote", ", ".join(map(str, paths)))
    if line.report is not None:
        path = write_report(found, line.report)
        print(f"wrote {path}", file=sys.stderr if line.json else sys.stdout)
    if line.json:
        values = [evaluation.to_json() for evaluation in found]
        print(json.dumps(values[0] if len(values) == 1 else values, indent=2, allow_nan=False))
    elif len(found) > 1:
        make_console().print(comparison(found, distances))
    return status


def _prompts(line: CommandLine, distances: tuple[float, ...]) -> int:
    """Bounds around a prompt, of each run."""
    assert line.prompt is not None
    found = []
    for directory in line.checkpoint_dirs:
        evaluation = evaluate_prompt(directory, line.prompt, distances, line.substitutions)
        found.append(evaluation.to_json())
        folder, path = run_of(evaluation.loaded.path), None
        try:
            path = write_prompt(evaluation, folder)
        except OSError as error:
            print(f"warning: cannot write to {folder} ({error.strerror})", file=sys.stderr)
        if not line.json:
            make_console().print(evaluation)
            print(f"wrote {path}" if path else "", end="\n" if path else "")
    if line.json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2, allow_nan=False))
    return 0


def write_report(found: list[Evaluation], path: Path) -> Path:
    """The page, written. Raises UserError if it cannot be."""
    from lipzoo.evaluate.report import report  # matplotlib takes a second to import.

    command = ["python", "-m", "lipzoo.evaluate", *sys.argv[1:]]
    try:
        write_text(path, report(found, command))
    except OSError as error:
        raise UserError(f"cannot write the report to {path} ({error.strerror})") from error
    return path


def comparison(found: list[Evaluation], distances: tuple[float, ...]) -> Table:
    """A row a run: clean accuracy, and certified accuracy of the whole test split at each distance."""
    table = Table("run", "clean", *map(fraction, distances), title="Certified accuracy")
    for evaluation in found:
        cells = [f"{value:.1%}" for value in (evaluation.clean, *evaluation.certified)]
        table.add_row(str(run_of(evaluation.loaded.path)), *cells)
    return table


if __name__ == "__main__":
    sys.exit(guarded(_main))
