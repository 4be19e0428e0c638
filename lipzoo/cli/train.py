"""The command-line entry that every recipe calls."""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro
from tyro.conf import AvoidSubcommands

from lipzoo.cli.help import print_short
from lipzoo.cli.line import CommandLine, Resume
from lipzoo.config.fields import field_refusal
from lipzoo.devices.processes import from_first, in_all, is_first, timestamp
from lipzoo.recipe.changes import check_unchanged
from lipzoo.recipe.largest_step import fitted
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.unused import unused_refusal
from lipzoo.system.compiled import forget_compiled
from lipzoo.system.errors import UserError
from lipzoo.system.files import read_json
from lipzoo.system.lock import held
from lipzoo.system.streams import outliving_readers
from lipzoo.system.terminal import guarded as guarded
from lipzoo.system.terminal import program


def main(default: Recipe, variants: Mapping[str, Recipe] | None = None) -> None:
    """Parses the command line over `default`, trains, certifies what was stored, and exits.

    With --variant NAME, one of `variants` is taken for `default`.
    """
    sys.exit(guarded(lambda: _train(default, sys.argv[1:], variants or {})))


def parse(
    default: Recipe, argv: Sequence[str], variants: Mapping[str, Recipe] | None = None, stored: Recipe | None = None
) -> CommandLine:
    """The command line; with --resume, its defaults are what the run has stored (by default, in the newest checkpoint
    whose recipe can be read), with --variant, those of a variant."""
    variant, argv = _variant(argv, variants or {})
    resume, _ = tyro.cli(Resume, args=list(argv), add_help=False, return_unknown_args=True, console_outputs=False)
    if resume.resume is not None and variant is not None:
        raise UserError("--variant has no effect on --resume, which takes the settings of the run: leave one out")
    if resume.resume is not None:
        stored = stored or stored_recipe(resume.resume)
    start = stored or variant or default
    named = f" --variant NAME starts from other settings: {', '.join(variants)}." if variants else ""
    description = f"Trains a Lipschitz-bounded network and certifies it.{named}"
    if {"-h", "--help"} & set(argv) and "--help-all" not in argv:
        print_short(start, program(), description)
    line = tyro.cli(
        CommandLine,
        args=["--help" if part == "--help-all" else part for part in argv],
        default=CommandLine(recipe=start),
        config=(AvoidSubcommands,),
        prog=program(),
        description=description,
    )
    if stored is not None:
        check_unchanged(stored, line.recipe)
    if stored is not None and line.run_dir is not None:
        raise UserError("--run-dir has no effect beside --resume, which goes on in the same directory: leave it out")
    if refusal := field_refusal(line.recipe) or unused_refusal(start, line.recipe):
        raise UserError(refusal)
    return line


def _variant(argv: Sequence[str], variants: Mapping[str, Recipe]) -> tuple[Recipe | None, Sequence[str]]:
    """The variant asked for, and the rest of the command line."""
    if not variants:
        return None, argv
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--variant")
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError("--variant takes a name") from error
    if known.variant is None:
        return None, rest
    if known.variant not in variants:
        raise UserError(f"there is no --variant {known.variant!r}; choose from {', '.join(variants)}")
    return variants[known.variant], rest


def stored_recipe(run: Path) -> Recipe:
    """The recipe of a run that is to be resumed: its newest checkpoint's, or what it was started with."""
    from lipzoo.train.reading import Damaged, find_steps, read_recipe

    if not (run / "recipe.json").exists() and not (run / "checkpoints").is_dir():
        raise UserError(f"{run} holds neither recipe.json nor checkpoints: give --resume the directory of a run")
    for step in find_steps(run):
        with contextlib.suppress(Damaged):  # What is damaged is told when all of it is looked at.
            return read_recipe(step)
    return _first_recipe(run / "recipe.json")


def _first_recipe(path: Path) -> Recipe:
    try:
        return Recipe.from_json(read_json(path))
    except (OSError, ValueError) as error:
        raise UserError(f"no checkpoint has a readable recipe, and {path} cannot be read ({error})") from error


def _newest_whole(run: Path) -> Recipe | None:
    """The recipe of the checkpoint that a run goes on from, the same in all processes; None if there is none yet."""
    from lipzoo.train.contents import newest_whole
    from lipzoo.train.reading import read_recipe

    def find() -> int:
        with held(run):
            found = newest_whole(run)
        return -1 if found is None else int(found.name)

    step = from_first(in_all(lambda: find() if is_first() else -1))
    return None if step < 0 else read_recipe(run / "checkpoints" / str(step))


def _train(default: Recipe, argv: Sequence[str], variants: Mapping[str, Recipe]) -> int:
    line = parse(default, argv, variants)
    if not line.compilation_cache:
        forget_compiled()
    line.processes.start()  # Before anything computes.
    if line.resume.resume is not None and (whole := _newest_whole(line.resume.resume)) is not None:
        line = parse(default, argv, variants, whole)  # It may be another than the newest whose recipe can be read.
    recipe = fitted(line.recipe)
    from lipzoo.cli.run import train

    resume = line.resume.resume
    with outliving_readers():
        return train(recipe, resume or line.run_dir or _new_run(recipe.name), resume=resume is not None)


def _new_run(name: str) -> Path:
    return Path("runs") / name / timestamp()
